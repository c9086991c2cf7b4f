"""Layers that are planned together get the plans that each would get alone, at the price of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from toprovar_fx.criteria.score_registry import ScoreContext
from toprovar_fx.options import Options
from toprovar_fx.policies import layer_plan
from toprovar_fx.policies.layer_plan import LayerQuestion, plan_layer, plan_layers

from .models.fixtures import traced
from .models.subjects import OPEN, identical

IMAGES, SIDE = 2, (4, 5)
LENGTH = SIDE[0] * SIDE[1]
FINE = {"buckets": (0.25, 0.5, 0.75), "entropy_source": "previous_scale"}


def question(layer: int, guided: bool, **given: Any) -> LayerQuestion:
    """Of a layer of twelve, at scale 3 of 5, with a map of its own."""
    rows = IMAGES * (2 if guided else 1)
    source = torch.Generator().manual_seed(layer)
    place = ScoreContext(layer=layer, layers=12, scale=3, scales=5, side=SIDE, images=IMAGES, seed=3)
    asked = {
        "detail": 0.1 + layer % 7 / 8,
        "entropy": 3 * torch.rand(rows, LENGTH, generator=source),
        "ratio": None,
        **given,
    }
    return LayerQuestion(place=place, hidden=torch.zeros(rows, LENGTH, 1), **asked)


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["criterion", "ratio", "all", "none", "no map"]), min_size=1, max_size=8),
    guided=st.booleans(),
    options=st.fixed_dictionaries(
        {},
        optional={
            "cfg_rows": st.sampled_from(["shared", "cond", "per_row"]),
            "batch_rule": st.sampled_from(["mean", "max"]),
            "sampling": st.sampled_from(["topk", "bernoulli"]),
            "normalise": st.sampled_from(["mean", "rank", "minmax", "literal"]),
            "layer_skip_below": st.sampled_from([0.3, 0.6]),
            "prune_tokens": st.booleans(),
            "keep_low": st.booleans(),
        },
    ),
)
def test_together_as_alone(kinds, guided, options):
    chosen = Options.parse({"preset": "criterion", **FINE, **options})
    given_of = {
        "ratio": {"ratio": 0.4},
        "all": {"ratio": 1.0},
        "none": {"ratio": 0.0},
        "no map": {"entropy": None},
    }
    asks = [question(layer, guided, **given_of.get(kind, {})) for layer, kind in enumerate(kinds)]
    for found, ask in zip(plan_layers(chosen, asks), asks, strict=True):
        alone = plan_layer(chosen, ask)
        assert found.count == alone.count
        assert (found.keep is None) == (alone.keep is None)
        if found.keep is not None:
            assert torch.equal(found.keep, alone.keep)
            assert found.keep.shape == (len(ask.hidden), found.count)
            assert found.keep.stride() == (found.count, 1), "as a fresh tensor, which compiled graphs expect"


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators(layers: int) -> int:
    options = Options.parse({"preset": "criterion", **FINE})
    asks = [question(layer, guided=True, detail=0.5) for layer in range(layers)]
    with Operators() as seen:
        plans = plan_layers(options, asks)
    assert all(plan.keep is not None for plan in plans)
    return seen.count


@pytest.mark.parametrize("sampling", ["topk", "bernoulli"])
def test_a_keep_set_is_worked_out_once_and_only_when_asked_for(sampling, monkeypatch):
    options = Options.parse({"preset": "criterion", **FINE, "sampling": sampling})
    plans = plan_layers(options, [question(layer, guided=True, detail=0.5) for layer in range(3)])
    for name in ("rank_layers", "bernoulli_tokens"):
        function = getattr(layer_plan, name)
        monkeypatch.setattr(layer_plan, name, lambda *given, f=function: seen.append(given) or f(*given))
    seen: list[object] = []
    assert all(plan.count for plan in plans) and not seen
    for plan in (*plans, *plans):
        assert plan.keep is plan.keep
    assert len(seen) == (1 if sampling == "topk" else len(plans))


def test_many_layers_cost_as_many_operators_as_few():
    # Maps that are alike in size are alike in K, or nearly: one sort per K.
    assert operators(40) <= operators(4) + 10


@pytest.mark.parametrize("unit", ["block", "step"])
@pytest.mark.parametrize("ranking_depth", [None, 0.0, 0.5, 1.0])
def test_a_generation_is_the_same_with_every_layer_planned_alone(monkeypatch, unit, ranking_depth):
    options = {**OPEN, **FINE, "ranking_depth": ranking_depth, "unit": unit, "verify": "never"}
    together = traced("infinity")(options)
    monkeypatch.setattr(
        "toprovar_fx.runtime.layer_plans.LayerPlans._planned_with", lambda self, layer: [layer]
    )
    alone = traced("infinity")(options)
    assert together.keeps.keys() == alone.keeps.keys() and together.keeps
    assert all(torch.equal(keep, alone.keeps[place]) for place, keep in together.keeps.items())
    assert identical(together.logits, alone.logits)
