"""Every way to write self-attention that is understood: bit-equal, permutable, prunable, measurable."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from toprovar_fx.analysis.reasons import Reason

from .models.attentions import FUSED, GROUPED, AttendingSubject
from .models.flex_attentions import FLEX
from .models.handwritten_attentions import CROSS, HANDWRITTEN
from .models.packaged_attentions import LIBRARIES
from .models.packed_attentions import PACKED
from .models.subjects import Outcome, generate, identical, worst
from .models.traced import Traced
from .oracle_attentions import replay

WRITTEN = (*FUSED, *GROUPED, *LIBRARIES, *HANDWRITTEN, *CROSS)
KINDS = {**{kind.__name__: kind for kind in WRITTEN}, **FLEX, **PACKED}
OPEN = {"preset": "criterion", "protected_layers_first": 0, "protected_layers_last": 0, "restore": "residual"}
KEEP = {3: 0.5, 4: {0: 0.3, 1: 0.7}, 5: 0.25}
# A model costs a second to trace; these are different enough to run every time, the others run at night.
OFTEN = {
    *("AdditiveMask", "OwnScaleMask", "NoHeadsMask", "ExpandedHeads", "OneKeyHead", "GroupedMask"),
    *("FlashGrouped", "FlashOperator", "XformersBias", "MatmulFloat", "MatmulFill", "MatmulOwnScale"),
    *("EinsumDots", "Baddbmm", "GroupedMatmul", "CrossHandwritten"),
    *("PackedReshaped", "PackedGrouped", "PackedOperator", "PackedText"),
    *("FlexHeads", "FlexTemperature", "FlexDistance", "FlexOwnScale"),
}
EVERY = [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.nightly], id=name) for name in KINDS]
WHOLE = [each for each in EVERY if not KINDS[str(each.values[0])].columns]


@cache
def traced(name: str) -> Traced:
    return Traced(AttendingSubject(KINDS[name]))


@cache
def dense(name: str) -> Outcome:
    subject = traced(name).subject
    return generate(subject, subject.model)


def measured() -> Iterator[object]:
    """Every way with the entropies over either keys, over both by night."""
    for at, name in enumerate(KINDS):
        for keys, over in enumerate(("all", "scale")):
            rare = name not in OFTEN or (at + keys) % 2
            yield pytest.param(name, over, id=f"{over}-{name}", marks=[pytest.mark.nightly] if rare else [])


@pytest.mark.parametrize(("name", "keys"), measured())
def test_the_tapped_model_is_the_untouched_one_and_its_entropies_are_true(name, keys, observed):
    options = {"tau": 1.0, "min_scale": 1, "depth_layers": "all", "entropy_keys": keys, "pruned_kv": "keep"}
    outcome = traced(name)({**OPEN, **options})
    assert not outcome.controller.ledger.fallbacks
    assert outcome.arms(5) == ["tapped", "tapped"]
    assert identical(outcome.logits, dense(name).logits)
    oracle = replay(traced(name).subject, {}, "input")
    assert worst(dense(name).logits, oracle.logits) < 1e-5, "the model is not what it claims to be"
    expected = oracle.entropy if keys == "all" else oracle.scale_entropy
    assert observed.keys() == {(scale, layer) for scale in range(1, 6) for layer in range(2)}
    for place, entropy in observed.items():
        assert entropy.dtype == torch.float32
        torch.testing.assert_close(entropy.double(), expected[place], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", EVERY)
def test_the_block_without_pruning_is_the_untouched_one(name):
    outcome = traced(name)({**OPEN, "preset": "lossless"})
    assert outcome.arms(5) == ["dense", "dense"]
    assert identical(outcome.logits, dense(name).logits)
    assert identical(outcome.state.keys, dense(name).state.keys)


def check_subset(name: str, options: dict[str, object], where: str) -> None:
    outcome = traced(name)({**OPEN, "keep": KEEP, "min_scale": 3, **options})
    ledger = outcome.controller.ledger
    assert not ledger.fallbacks
    assert outcome.arms(5) == ["pruned", "pruned"]
    # The permutation check ran on real inputs, and all tokens in another order gave the dense result.
    assert ledger.deviations and max(ledger.deviations.values()) < 1e-5
    oracle = replay(traced(name).subject, outcome.keeps, where)
    assert worst(outcome.logits, oracle.logits) < 2e-5
    assert worst(outcome.logits, dense(name).logits) > 1e-3


@pytest.mark.parametrize("name", WHOLE)
def test_dropped_tokens(name):
    check_subset(name, {"score": "random"}, "input")


@pytest.mark.parametrize("name", EVERY)
def test_tokens_that_leave_their_keys(name):
    check_subset(name, {"score": "random", "pruned_kv": "keep"}, "query")


@pytest.mark.parametrize("name", EVERY)
def test_layers_that_rank_themselves(name):
    check_subset(name, {"score": "entropy", "entropy_source": "same_layer"}, "attention")


@pytest.mark.parametrize("name", WHOLE)
def test_entropies_of_kept_tokens(name, observed):
    options = {"keep": KEEP, "min_scale": 1, "score": "entropy", "entropy_source": "previous_scale"}
    outcome = traced(name)({**OPEN, **options})
    assert outcome.arms(5) == ["pruned", "pruned"]
    oracle = replay(traced(name).subject, outcome.keeps, "input")
    assert worst(outcome.logits, oracle.logits) < 2e-5
    for place in outcome.keeps.keys() & observed.keys():
        torch.testing.assert_close(observed[place].double(), oracle.entropy[place], rtol=0, atol=2e-5)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name",
    [
        *("Baddbmm", "GroupedMatmul", "ExpandedHeads", "OwnScaleMask", "Flash"),
        *("PackedGrouped", "PackedText"),
    ],
)
def test_through_inductor(name):
    check_compiled(name, {}, "input")


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "keys"), [("FlexTemperature", "drop"), ("FlexDistance", "keep")])
def test_through_inductor_which_compiles_no_flex_attention_of_a_cpu(name, keys):
    """Torch's own template for CPUs fails at such queries and at captured sizes: the report says so."""
    with pytest.warns(RuntimeWarning) as caught:
        outcome = check_compiled(name, {"pruned_kv": keys}, "query" if keys == "keep" else "input")
    said = [str(warning.message) for warning in caught if "NOT_COMPILED" in str(warning.message)]
    for block in ("all tokens:", "all tokens, entropies:", "K tokens from"):
        assert any(f"NOT_COMPILED: block: {block}" in line for line in said), said
    # Torch's lowering of the attention is what fails, not what stands around it.
    assert all("InductorError: LoweringException" in line for line in said), said
    noted = {why.reason for scale in outcome.controller.ledger.notes.values() for why in scale}
    assert noted == {Reason.NOT_COMPILED}


def check_compiled(name: str, options: dict[str, object], where: str) -> Outcome:
    given = {"keep": KEEP, "min_scale": 1, "score": "entropy", "entropy_source": "previous_scale", **options}
    model = Traced(AttendingSubject(KINDS[name]))
    outcome = model({**OPEN, **given, "lowering": "inductor"})
    assert outcome.arms(5) == ["pruned", "pruned"]
    assert not outcome.controller.ledger.fallbacks
    oracle = replay(model.subject, outcome.keeps, where)
    assert worst(outcome.logits, oracle.logits) < 2e-5
    return outcome
