"""Generations whose graphs are rewritten as for a Hopper card: equal bit for bit to those as traced."""

from __future__ import annotations

from collections.abc import Mapping
from unittest import mock

import pytest

from .hopper_forms import rewrite_anywhere
from .models.fixtures import NAMES, traced
from .models.subjects import OPEN, Outcome, identical

ONE_MAP = {"entropy_source": "previous_scale", "ranking_depth": 0.0, "protected_layers_first": 0}
FEW = {"keep": {-2: 0.5, -1: {0: 0.5, 1: 0.25, 2: 0.25, 3: 0.0}}}
OPTIONS: dict[str, dict[str, object]] = {
    "lossless": {"preset": "lossless", "unit": "step"},
    "lossless, by blocks": {"preset": "lossless", "unit": "block"},
    "one map": {**FEW, **ONE_MAP, "restore": "residual", "unit": "step"},
    "one map, by blocks": {**FEW, **ONE_MAP, "restore": "residual", "unit": "block"},
    "updates": {**FEW, **ONE_MAP, "restore": "cache", "unit": "step"},
    "all keys": {**FEW, "pruned_kv": "keep", "unit": "step"},
    "online": {"min_scale": 2, "unit": "step"},
}


def generation_of(name: str, options: Mapping[str, object]) -> Outcome:
    with mock.patch.object(traced(name), "programs", {}):
        return traced(name)({**OPEN, **options}, images=2)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_generation_stays_the_same(name: str, options: Mapping[str, object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        operators = rewrite_anywhere(patch)
        found = generation_of(name, options)
    expected = generation_of(name, options)
    assert operators["linear_add"] + operators["linear_add_norm"] > 0
    assert identical(found.logits, expected.logits)
    assert identical(found.state.keys, expected.state.keys)
    assert identical(found.state.values, expected.state.values)
    assert found.keeps.keys() == expected.keeps.keys()


def test_every_operator_is_among_them() -> None:
    with pytest.MonkeyPatch.context() as patch:
        operators = rewrite_anywhere(patch)
        for options in (OPTIONS["one map"], OPTIONS["lossless"]):
            generation_of("infinity", options)
    ours = {
        "linear",
        "linear_add",
        "linear_add_norm",
        "linear_add_rows",
        "rotated_attention",
        "projected_attention",
    }
    assert ours <= operators.keys()
