"""`sparsevar` equals SparseVAR written plainly: one keep set for all layers, anchors for what is left out."""

from __future__ import annotations

import pytest
import torch

from toprovar_fx.criteria.selection import select_tokens
from toprovar_fx.policies.sparsevar import _anchors, _nearest_anchor

from .models.fixtures import NAMES, eager, traced
from .models.subjects import SQUARE, WIDE, identical, worst
from .peer_oracles import sparsevar

TOLERANCE = 2e-5
GIVEN = {-3: 0.6, -2: 0.4, -1: 0.25}
CASES = [
    *((name, SQUARE, 1, GIVEN) for name in NAMES),
    ("infinity", SQUARE, 1, {}),
    *((name, SQUARE, 2, GIVEN) for name in ("infinity", "prenorm-separate-rope")),
    ("infinity", WIDE, 1, GIVEN),
]


@pytest.mark.parametrize(
    ("name", "schedule", "images", "given"), CASES, ids=lambda value: str(value)[-40:].replace("::", ":")
)
def test_a_generation_equals_the_plain_one(name, schedule, images, given):
    scales = len(schedule)
    options = {"policy": "sparsevar", "keep": given or None}
    outcome = traced(name)(options, images=images, schedule=schedule)
    shares = {scales + at: share for at, share in given.items()}
    logits, chosen = sparsevar(traced(name).subject, scales - 3, 2, shares, images=images, schedule=schedule)
    found = outcome.controller.ledger.keep_sets
    some = {scale for scale, kept in chosen.items() if len(kept[0]) < schedule.tokens[scale]}
    assert scales - 1 in some
    assert found.keys() == {(scale, layer) for scale in some for layer in range(4)}
    for (scale, _), keep in found.items():
        assert keep.tolist() == chosen[scale] * 2
    assert worst(outcome.logits, logits) < TOLERANCE
    assert not outcome.controller.ledger.fallbacks


@pytest.mark.parametrize("name", ["infinity", "prenorm-fused-absolute"])
def test_keeping_all_is_the_dense_model_bit_for_bit(name):
    outcome = traced(name)({"policy": "sparsevar", "keep": {-3: 1.0, -2: 1.0, -1: 1.0}})
    assert identical(outcome.logits, eager(name).logits)


def test_ratios_may_be_given():
    outcome = traced("infinity")({"policy": "sparsevar", "keep": {-1: 0.5}})
    assert outcome.counts(5) == [32] * 4
    # The one anchor of a small map has company: a block is not traced for a single token.
    outcome = traced("infinity")({"policy": "sparsevar", "keep": {3: 0.05}})
    assert outcome.counts(3) == [2] * 4


@pytest.mark.parametrize("given", [None, {-3: 0.6, -2: 0.4, -1: 0.25}], ids=["measured", "given"])
def test_the_layers_of_a_scale_share_one_plan(monkeypatch, given):
    """Each plan reads the device."""
    made = []

    def counted(score: torch.Tensor, count: int) -> torch.Tensor:
        made.append(count)
        return select_tokens(score, count)

    monkeypatch.setattr("toprovar_fx.policies.sparsevar.select_tokens", counted)
    outcome = traced("infinity")({"policy": "sparsevar", "keep": given})
    scales = {scale for scale, _ in outcome.keeps}
    assert scales and len(made) == len(scales)


def test_anchors_are_a_grid():
    assert _anchors((5, 9), torch.device("cpu")).nonzero().flatten().tolist() == [0, 4, 8, 36, 40, 44]


def test_the_most_similar_corner_stands_in():
    features = torch.zeros(1, 64, 2)
    features[..., 0] = 1
    features[0, 4 * 8 + 4] = features[0, 9] = torch.tensor([0.0, 1.0])
    index, similarity = _nearest_anchor(features, (8, 8))
    assert (index[0, 9], similarity[0, 9]) == (36, 1)
    assert similarity[0, 10] == 1
    assert index[0, 10] in (0, 4, 32)
    # There is no anchor beyond the border.
    assert index[0, 63] == 36
