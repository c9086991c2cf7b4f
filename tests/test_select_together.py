"""Keep sets of several layers at the price of one sort: the operator, and the steps that call it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from toprovar_fx.lowering.joined_layers import JoinedLayer, ranked_from_before
from toprovar_fx.ops.select_tokens import select_tokens, select_tokens_by_layer
from toprovar_fx.program import StepProgram

from .models.fixtures import traced
from .models.subjects import OPEN
from .test_whole_step import BEFORE, assert_same

IMAGES, LENGTH = 2, 20


@pytest.mark.parametrize("keep_low", [True, False])
@pytest.mark.parametrize("rule", ["shared", "cond", "per_row"])
@pytest.mark.parametrize("rows", [IMAGES, 2 * IMAGES])
def test_each_layer_gets_what_it_would_get_alone(rows, rule, keep_low):
    # Few distinct values: ties are broken alike.
    maps = [torch.randint(6, (rows, LENGTH)).float() for _ in range(3)]
    found = select_tokens_by_layer(maps, 7, IMAGES, rule, keep_low)
    alone = torch.stack([select_tokens(each, 7, IMAGES, rule, keep_low) for each in maps])
    assert torch.equal(found, alone) and found.is_contiguous()


def test_opcheck():
    maps = [torch.rand(2 * IMAGES, LENGTH) for _ in range(2)]
    torch.library.opcheck(select_tokens_by_layer, (maps, 5, IMAGES, "shared", True))


def test_only_maps_that_are_there_before_the_scale_go_together():
    ranked_by_self = [JoinedLayer(count=0, ranked_by=at) for at in range(3)]
    measuring = JoinedLayer(entropy=True)
    ranked_by_fresh = JoinedLayer(count=0, ranked_by=3)
    given = JoinedLayer(count=1)
    layers = [*ranked_by_self, measuring, ranked_by_fresh, given, JoinedLayer(count=2, ranked_by=1)]
    assert ranked_from_before(layers) == {0: (0, 1, 2), 2: (1,)}


class Selections(TorchDispatchMode):
    """Counts the operators of this package that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called[func.name().removeprefix("toprovar::").partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("code", ["shared", "fused"])
@pytest.mark.parametrize(
    ("keep", "several", "single"),
    [({-1: 0.5}, 1, 0), ({-1: {1: 0.5, 2: 0.5, 3: 0.3}}, 1, 1), ({-1: {2: 0.5}}, 0, 1)],
    ids=["all alike", "two alike", "one"],
)
def test_a_step_sorts_once_for_the_layers_of_one_count(monkeypatch, keep, several, single, code):
    options, seen, call = {**OPEN, "keep": keep, **BEFORE}, Selections(), StepProgram.__call__

    def watched(self: StepProgram, *arguments: Any) -> Any:
        with seen:
            return call(self, *arguments)

    monkeypatch.setattr(StepProgram, "__call__", watched)
    found = traced("infinity")({**options, "unit": "step", "step_code": code})
    assert not found.controller.ledger.notes
    assert_same(found, traced("infinity")(options))
    assert (seen.called["select_tokens_by_layer"], seen.called["select_tokens"]) == (several, single)
