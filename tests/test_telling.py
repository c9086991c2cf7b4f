"""What a recorded step tells besides its results is what the functions give that a host would call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toprovar_fx._torch_private import clone_all
from toprovar_fx.criteria.restore import upsample_map
from toprovar_fx.criteria.saliency import scale_weight
from toprovar_fx.criteria.weighing import Weighing, weigh_layers
from toprovar_fx.options import Options
from toprovar_fx.policies.layer_plan import wanted_counts
from toprovar_fx.readback import Reading
from toprovar_fx.runtime.depth import rho_of_maps
from toprovar_fx.runtime.generation import Generation
from toprovar_fx.runtime.recorded_function import RecordedFunction
from toprovar_fx.runtime.scope import scope_of_maps
from toprovar_fx.runtime.telling import Coming, Scope, Telling

from .models.subjects import SQUARE, generate
from .replayed_steps import Kept, compiled
from .test_online_steps import ONLINE, assert_same

RULE = Weighing("shared", True, "mean", 0.3, 0.8, "mean")
SIDE, NEXT = (4, 4), (6, 6)
LAYERS = (1, 2, 3)


def maps_of(layers: tuple[int, ...], rows: int = 2) -> dict[int, Tensor]:
    source = torch.Generator().manual_seed(3)
    return {layer: 3 * torch.rand(rows, 16, generator=source) for layer in layers}


@pytest.mark.parametrize("rule", ["shared", "cond", "per_row"])
@pytest.mark.parametrize("scoped", [False, True])
@pytest.mark.parametrize("ranked_by", [LAYERS, (2, 2, 2)], ids=["each itself", "one layer"])
def test_it_is_what_the_functions_give(rule, scoped, ranked_by):
    weighing = Weighing(rule, True, "mean", 0.3, 0.8, "mean")
    maps, weight = maps_of((0, *LAYERS)), scale_weight(4, 6)
    measured = torch.rand(4)
    scope = Scope(tuple(maps), SIDE, False, 0.02) if scoped else None
    coming = Coming(5, LAYERS, ranked_by, (SIDE, NEXT), weight, (1, 2, 3))
    telling = Telling((2, 3), scope, coming, 1, weighing)
    assert telling.takes_detail is not scoped
    given = tuple(maps), torch.stack(list(maps.values()))
    told = telling(*given, None if scoped else measured)
    assert len(told) == 1 + scoped
    numbers, *others = told

    rho = rho_of_maps(torch.stack([maps[2], maps[3]], dim=1), 1, rule)[1]
    assert torch.equal(numbers[: len(rho)], rho)
    if scoped:
        sides = torch.stack([each.unflatten(1, SIDE) for each in maps.values()])
        ratios, measured = scope_of_maps(sides, False, 0.02)
        assert torch.equal(others[0], ratios) and torch.equal(numbers[len(rho) : -3], measured)
    resized = {layer: upsample_map(maps[layer], SIDE, NEXT) for layer in dict.fromkeys(ranked_by)}
    statistics = torch.stack([resized[layer] for layer in ranked_by], dim=1)
    # As the host multiplies: Python's numbers are of double precision.
    rates = torch.tensor([weight * role for role in measured[1:].tolist()], dtype=torch.float64)
    assert torch.equal(numbers[-3:], weigh_layers(statistics, rates, 1, weighing)[1])


def test_without_a_scope_every_layer_weighs_one():
    coming = Coming(5, LAYERS, LAYERS, (SIDE, NEXT), 0.8, None)
    maps = torch.stack(list(maps_of(LAYERS).values()))
    told = Telling((), None, coming, 1, RULE)(LAYERS, maps, None)
    ones = Coming(5, LAYERS, LAYERS, (SIDE, NEXT), 0.8, (0, 0, 0))
    expected = Telling((), None, ones, 1, RULE)(LAYERS, maps, torch.ones(1))
    assert torch.equal(told[0], expected[0]) and len(told[0]) == 3


def test_a_recorded_generation_launches_no_statistic(recorder, monkeypatch):
    subject = Kept()
    forward = compiled(subject, ONLINE, unit="step")
    expected = generate(subject, forward)
    called: list[object] = []
    monkeypatch.setattr(RecordedFunction, "__call__", lambda self, *given, **more: called.append(self))
    found = generate(subject, forward)
    assert not called
    ours, theirs = found.controller.ledger, expected.controller.ledger
    assert ours.rho == theirs.rho and ours.detail == theirs.detail and len(ours.detail) == subject.layers
    assert ours.sigma_ratios.keys() == theirs.sigma_ratios.keys()
    assert found.keeps.keys() == expected.keeps.keys() and found.keeps


def test_what_cannot_be_recorded_tells_nothing(recorder, monkeypatch):
    """Kernel by kernel it would cost more than the recordings of the statistics."""
    recorder.fails = "operation not permitted when stream is capturing"
    subject = Kept()
    forward, plain = compiled(subject, ONLINE, unit="step"), compiled(subject, ONLINE, unit="block")
    generate(subject, forward)
    told: list[object] = []
    monkeypatch.setattr(Telling, "__call__", lambda self, *given: told.append(self))
    assert_same(generate(subject, forward), generate(subject, plain))
    assert not told


@pytest.mark.parametrize("options", [{}, {"entropy_source": "same_layer"}], ids=["steps", "blocks"])
def test_statistics_that_are_not_told_are_recorded(options, recorder):
    found = generate(subject := Kept(), compiled(subject, {**ONLINE, **options}, unit="step"))
    deciders = found.controller._deciders
    assert deciders.depth.measure._memory is not None and deciders.scope.measure._memory is not None


def test_a_generation_that_ended_holds_nothing_resized(recorder):
    subject = Kept()
    forward = compiled(subject, ONLINE, unit="step")
    for found in (generate(subject, forward), generate(subject, forward)):
        for maps in (found.controller.left.maps, found.controller.left.updates):
            assert not maps._resized
        assert not found.controller._plans._plans and found.controller._plans._told is None


def test_counts_that_were_told_are_for_their_scale_and_layers():
    """Others are weighed; so are those of rows of which some were left out since."""
    run = Generation(SQUARE, 1)
    controller = run.controller(compiled_options(), 4)
    run.begin_scale(3)
    hidden = torch.zeros(2, 16, 8)
    for layer in range(4):
        controller.observe(layer, maps_of((layer,))[layer], None, 16)
        controller.account(layer, 0, torch.zeros(2, 16, 8))
    plans = controller._plans
    told = Reading(torch.tensor([0.2, 0.2, 0.2]))
    plans.hear(4, LAYERS, told.part(0, 3))
    weighed = plans.counts(range(4), hidden)
    assert weighed is not None and [layer for layer, _ in weighed] == [1, 2, 3], "told of scale 4, not of 3"
    run.begin_scale(4)
    (wanted,) = wanted_counts(controller.options, [0.2], 36)
    assert plans.counts(range(4), torch.zeros(2, 36, 8)) == tuple((layer, wanted) for layer in LAYERS)
    plans.end_scale()
    controller.leave_out_unconditional()
    assert plans.counts(range(4), torch.zeros(1, 36, 8)) != tuple((layer, wanted) for layer in LAYERS)


def compiled_options() -> Options:
    return Options(**{**ONLINE, "depth": "fixed", "depth_scale": 2, "buckets": (0.25, 0.5, 0.75)})


def test_a_part_of_a_reading():
    part = Reading(torch.arange(5.0)).part(1, 3)
    assert part.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("more", [0, 6])
def test_copies_of_many_tensors_are_fresh_and_alike(more):
    large = torch.rand(600, 512)
    values = (
        torch.rand(3, 4).mT,
        7,
        None,
        torch.arange(3),
        large,
        torch.rand(2).bfloat16(),
        torch.rand(4, 1),
        *torch.rand(more, 5),
    )
    found = clone_all(values)
    assert found[1:3] == (7, None)
    for ours, theirs in zip(found, values, strict=True):
        if isinstance(theirs, Tensor):
            assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
            assert ours.dtype == theirs.dtype and ours.data_ptr() != theirs.data_ptr()
    assert clone_all(()) == ()
