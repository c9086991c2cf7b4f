"""FlexAttention under `torch.compile(dynamic=True)`: one trace for every token count and captured size."""

from __future__ import annotations

import pytest

from .models.attentions import AttendingSubject
from .models.flex_attentions import FLEX
from .models.subjects import WIDE, generate, identical, worst
from .models.traced import Traced
from .oracle_attentions import replay

OPEN = {"preset": "criterion", "protected_layers_first": 0, "protected_layers_last": 0, "restore": "residual"}
KEEP = {"keep": {3: 0.5, 4: {0: 0.3, 1: 0.7}, -1: 0.25}, "min_scale": 3}
# By where rows leave: at the block's input, behind its keys, behind its attention.
SUBSETS = {
    "input": {"score": "random"},
    "query": {"score": "random", "pruned_kv": "keep"},
    "attention": {"score": "entropy", "entropy_source": "same_layer"},
}
OFTEN = ("FlexTemperature", "FlexDistance")
# Where two score_mods read one float of the module, Dynamo itself fails if floats are inputs.
TRACED = [name for name in FLEX if name != "FlexSoftCap"]
EVERY = [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.nightly], id=name) for name in TRACED]


@pytest.mark.parametrize("name", EVERY)
def test_one_dynamic_trace_keeps_all_and_prunes_at_any_size(name):
    kind = FLEX[name]
    model = Traced(AttendingSubject(kind), dynamo={"dynamic": True})
    subject = model.subject
    # Traced second: a trace depends on which of torch's warnings were shown.
    expected = generate(subject, subject.model)
    measured = {"tau": 1.0, "min_scale": 1, "depth_layers": "all", "pruned_kv": "keep"}
    tapped = model({**OPEN, **measured})
    assert not tapped.controller.ledger.fallbacks
    assert tapped.arms(5) == ["tapped", "tapped"]
    assert identical(tapped.logits, expected.logits)
    graphs = len(model.graphs)
    for where, options in SUBSETS.items():
        if kind.columns and where == "input":
            continue
        found = model({**OPEN, **KEEP, **options})
        ledger = found.controller.ledger
        assert not ledger.fallbacks
        assert found.arms(5) == ["pruned", "pruned"]
        assert ledger.deviations and max(ledger.deviations.values()) < 1e-5
        assert worst(found.logits, replay(subject, found.keeps, where).logits) < 2e-5
    dense = generate(subject, subject.model, schedule=WIDE)
    other = model({**OPEN, **KEEP, **SUBSETS["query"]}, schedule=WIDE)
    assert other.arms(4) == ["pruned", "pruned"]
    assert worst(other.logits[:3], dense.logits[:3]) < 1e-6 < worst(other.logits, dense.logits)
    assert len(model.graphs) == graphs, "another schedule was traced anew"
