"""What is decided online and recorded is what blocks decide one by one, whatever the images before."""

from __future__ import annotations

import pytest
import torch

from .models.subjects import OPEN, Outcome, generate, identical
from .replayed_steps import Kept, compiled

pytestmark = pytest.mark.usefixtures("many_graphs")

ONLINE = {**OPEN, "entropy_source": "previous_scale", "min_scale": 2, "tau": 0.5}
CASES = {
    "every layer ranks itself": {},
    "every image its own counts": {"buckets": tuple(at / 64 for at in range(8, 65)), "tau": 0.3},
    "a map of every image row": {"cfg_rows": "per_row", "batch_rule": "max", "tau": 0.4},
    "layers may be skipped": {"layer_skip_below": 0.66, "buckets": (0.5, 0.75), "tau": 0.4},
}
MORE_CASES = {
    "one layer ranks all": {"ranking_depth": 0.0, "tau": 0.4},
    "no layer scope": {"layer_scope": "off", "restore": "residual", "pruned_kv": "keep", "tau": 0.4},
    "the scope of given values": {
        "layer_scope": "fixed",
        "scope_values": (0.3, 0.9),
        "normalise": "rank",
        "tau": 0.4,
    },
    "the layer scope reads tokens": {"scope_of": "tokens", "tau": 0.4},
    "the scope of the scale before the first that prunes": {"representative_scale": 0.5, "min_scale": 2},
    "high entropies are kept": {"keep_low": False, "cfg_rows": "cond", "tau": 0.4},
}
SEEDS = (1, 12, 7)  # of three depths, whatever the version of torch


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert identical(found.logits, expected.logits)
    ours, theirs = found.controller.ledger, expected.controller.ledger
    assert (ours.rho, ours.depth, ours.detail) == (theirs.rho, theirs.depth, theirs.detail)
    assert ours.keep_sets.keys() == theirs.keep_sets.keys()
    assert all(torch.equal(keep, theirs.keep_sets[place]) for place, keep in ours.keep_sets.items())
    assert [(run.scale, run.layer, run.arm, run.kept) for run in ours.runs] == [
        (run.scale, run.layer, run.arm, run.kept) for run in theirs.runs
    ]
    assert ours.gates == theirs.gates


@pytest.mark.parametrize(
    "case",
    [*CASES.values(), *(pytest.param(case, marks=pytest.mark.nightly) for case in MORE_CASES.values())],
    ids=[*CASES, *MORE_CASES],
)
def test_images_in_any_order(case, recorder):
    """Depths and counts differ between the images; a step that was recorded for one serves the others."""
    subject, options = Kept(), {**ONLINE, **case}
    plain, forward = compiled(subject, {**options, "unit": "block"}), compiled(subject, options, unit="step")
    stood = set()
    for seed in (*SEEDS, 7, 1, 1, 12):
        found, expected = (generate(subject, call, seed=seed) for call in (forward, plain))
        assert_same(found, expected)
        stood.add((found.controller.depth, *(tuple(found.counts(scale)) for scale in range(6))))
    assert len(stood) > 1 or case.get("ranking_depth") == 0.0
    assert recorder.replays > recorder.records
