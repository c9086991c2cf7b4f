"""What a generation's trackers answer, asked one by one: maps that rank, scope, and what a budget may cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from toprovar_fx.options import Options
from toprovar_fx.runtime import maps as maps_module
from toprovar_fx.runtime.deciders import Deciders
from toprovar_fx.runtime.graph_updates import GraphUpdates
from toprovar_fx.runtime.ledger import Ledger
from toprovar_fx.runtime.maps import Block, ScaleMaps
from toprovar_fx.runtime.ranking import Ranking
from toprovar_fx.runtime.rations import Rations
from toprovar_fx.runtime.scope import ScopeTracker
from toprovar_fx.schedules import Schedule

from .models.subjects import OPEN, SQUARE


def test_only_layers_of_the_running_scale_rank_others():
    ranking = Ranking(Options(**OPEN, entropy_source="previous_layer"), SQUARE)
    ranking.adopt(4)
    known = torch.rand(2, 16)
    ranking.put(3, {2: known})
    assert ranking.map_for(3, 3) is known
    ranking.end_scale()
    # Nothing was measured at the next scale: a layer has its own map, if any.
    assert ranking.map_for(3, 4) is None
    assert ranking.map_for(2, 4).shape == (2, 36)


def test_new_values_are_resized_anew():
    maps = ScaleMaps(SQUARE, updates=False)
    maps.put(2, {0: torch.zeros(1, 9)})
    assert not maps.at(0, 4).any()
    maps.put(3, {0: torch.ones(1, 16)})
    assert maps.at(0, 4).min() == 1


@pytest.mark.parametrize("updates", [False, True])
@pytest.mark.parametrize("most", [0, 1 << 20])
def test_values_are_resized_together_as_alone(updates, most, monkeypatch):
    monkeypatch.setattr(maps_module, "_MOST_BYTES", most)
    shape = (2, 16, 3) if updates else (2, 16)
    values = {layer: torch.rand(shape, generator=torch.Generator().manual_seed(layer)) for layer in range(3)}
    together = ScaleMaps(SQUARE, updates=updates)
    for layer, each in values.items():
        together.put(3, {layer: each})
    for layer, each in values.items():
        alone = ScaleMaps(SQUARE, updates=updates)
        alone.put(3, {layer: each})
        assert torch.equal(together.at(layer, 4), alone.at(layer, 4))
        assert together.at(layer, 4).stride() == alone.at(layer, 4).stride()
    assert len(together._resized) == (3 if most else len(values))


def test_updates_of_other_dtypes_are_resized_apart():
    updates = ScaleMaps(SQUARE, updates=True)
    updates.put(3, {0: torch.rand(2, 16, 3)})
    updates.put(3, {1: torch.rand(2, 16, 3).bfloat16()})
    updates.put(3, {2: torch.empty(2, 16, 3, device="meta")})
    assert updates.at(0, 4).dtype == torch.float32 and updates.at(1, 4).dtype == torch.bfloat16
    assert updates.at(2, 4).device.type == "meta"


def test_values_that_came_together_are_found_together():
    updates, shape = GraphUpdates(SQUARE), (2, 16, 3)
    older = Block.of(2, (0, 1, 2), torch.rand(3, 2, 9, 3))
    newer = Block.of(3, (2, 3), torch.rand(2, *shape))
    updates.put_together(newer)
    updates.put_together(older)  # a scale that runs again is the latest all the same
    assert updates.blocks((2, 3)) == ((newer, (3,)), (older, (2,)))
    updates.put_together(newer)
    assert updates.blocks((3, 0, 2)) == ((newer, (3, 2)), (older, (0,))), "the newest first"
    assert torch.equal(updates.at(2, 3), newer.values[0]) and torch.equal(updates.at(1, 2), older.values[1])
    updates.put(3, {3: torch.zeros(shape)})
    assert updates.blocks((2, 3)) is None and updates.blocks((2,)) == ((newer, (2,)),)
    updates.put_if(torch.tensor(True), 2, 3, torch.zeros(shape))
    assert updates.blocks((2,)) is None, "which of the two counts is known on the device"
    assert updates.blocks(()) == () and updates.blocks((0, 7)) is None
    updates.keep_rows(1)
    assert updates.blocks((0,)) is None and torch.equal(updates.at(0, 2), older.values[0, :1])


def test_rows_that_are_left_out_are_forgotten():
    maps, kept = ScaleMaps(SQUARE, updates=False), ScaleMaps(SQUARE, updates=False)
    known = torch.rand(2, 16)
    maps.put(3, {0: known})
    assert maps.at(0, 4).shape == (2, 36)
    maps.keep_rows(1)
    kept.put(3, {0: known[:1]})
    assert torch.equal(maps.at(0, 4), kept.at(0, 4))


@pytest.mark.parametrize(
    ("schedule", "share", "scale"),
    [(Schedule.infinity(), 6 / 13, 5), (SQUARE, 0.5, 2), (SQUARE, 1.0, 5), (SQUARE, 0.0, 0)],
    ids=["published", "half", "last", "first"],
)
def test_the_scope_is_measured_at_the_representative_scale(schedule, share, scale):
    """The paper counts scales from 1: its sixth of 13 is index 5."""
    options = Options(preset="criterion", representative_scale=share)
    assert ScopeTracker(options, schedule, Ledger()).measured_at == scale


def test_a_budget_leaves_the_first_scale_and_protected_layers_alone():
    options = Options(**OPEN, budget="2x", min_scale=0)
    deciders = Deciders.begin(options, SQUARE, 1, Ledger())
    deciders.adopt(4, 1)
    rations = Rations(options, SimpleNamespace(scale=0, schedule=SQUARE), deciders, {}, Ledger())
    allowed = {(scale, layer) for scale in range(6) for layer in range(4) if rations.allows(scale, layer)}
    assert allowed == {(scale, layer) for scale in range(1, 6) for layer in range(1, 4)}
