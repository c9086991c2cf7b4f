"""Plans of whole steps: made once where nothing measured decides, and never used where they do not hold."""

from __future__ import annotations

import pytest
import torch

from toprovar_fx.options import Options
from toprovar_fx.runtime import whole_step
from toprovar_fx.runtime.report import report_of
from toprovar_fx.runtime.step_plan import Plans

from .models.fixtures import traced
from .models.subjects import OPEN, SQUARE, WIDE, Outcome, identical
from .models.traced import Traced

KEEP = {3: 0.5, 4: {1: 0.25, 2: 0.0, 3: 0.7}, 5: {1: 0.3, 2: 0.6}}
GIVEN = {**OPEN, "keep": KEEP, "entropy_source": "previous_scale"}
FORESEEN = {
    "lossless": {"preset": "lossless"},
    "one layer ranks all": {**GIVEN, "ranking_depth": 0.5},
    "keys kept, nothing restored": {**GIVEN, "pruned_kv": "keep", "restore": "residual"},
    "frequency": {**OPEN, "keep": KEEP, "score": "frequency"},
    "random tokens": {**OPEN, "keep": KEEP, "score": "random"},
    "exit": {**GIVEN, "scale_exit": -1},
    "fastvar": {"policy": "fastvar"},
}
ONLINE = {**OPEN, "entropy_source": "previous_scale", "min_scale": 2}
MEASURED = {
    "a layer that is measured before ranks all": {**ONLINE, "ranking_depth": 0.0},
    "depth ends the scales": {**GIVEN, "scale_exit": "depth", "min_scale": 2},
    "bernoulli": {**GIVEN, "sampling": "bernoulli"},
    "budget": {**OPEN, "budget": 1.2, "entropy_source": "previous_scale", "min_scale": 2},
}


class Decisions:
    """Counts the scales that are decided."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        decide = whole_step.decide

        def counted(*given):
            self.made += 1
            return decide(*given)

        monkeypatch.setattr(whole_step, "decide", counted)


@pytest.fixture
def decisions(monkeypatch) -> Decisions:
    return Decisions(monkeypatch)


@pytest.fixture
def model(monkeypatch) -> Traced:
    """A model whose programs hold no plans yet."""
    monkeypatch.setattr(traced("infinity"), "programs", {})
    return traced("infinity")


def assert_same(found: Outcome, expected: Outcome) -> None:
    """What was computed, and what the report says of it."""
    assert identical(found.logits, expected.logits)
    assert identical(found.state.keys, expected.state.keys)
    assert found.keeps.keys() == expected.keeps.keys()
    assert all(torch.equal(value, expected.keeps[place]) for place, value in found.keeps.items())
    ours, theirs = (report_of(outcome.run).to_json() for outcome in (found, expected))
    # The unit is an option, and some scales note that they ran by blocks.
    differ = {name for name in ours if ours[name] != theirs[name]}
    assert differ <= {"options", "notes"}


@pytest.mark.parametrize("options", FORESEEN.values(), ids=FORESEEN)
def test_the_next_generation_follows_the_plans_of_the_first(options, decisions, model):
    assert Options.parse(options).foreseen
    model({**options, "unit": "step"})
    first = decisions.made
    found = model({**options, "unit": "step"}, seed=5)
    assert first > 0 and decisions.made == first
    assert_same(found, traced("infinity")(options, seed=5))


@pytest.mark.parametrize("options", MEASURED.values(), ids=MEASURED)
def test_what_depends_on_the_image_is_decided_for_every_image(options, decisions, model):
    model({**options, "unit": "step"})
    first = decisions.made
    found = model({**options, "unit": "step"}, seed=5)
    assert decisions.made > first
    assert_same(found, traced("infinity")(options, seed=5))


@pytest.mark.parametrize("buckets", [(0.5,), (0.25, 0.5, 0.75)], ids=str)
def test_online_a_scale_is_decided_once_for_each_depth_and_counts(buckets, decisions, model):
    """What is measured decides D and K, and these all else; tokens are those of every image."""
    options = {**ONLINE, "tau": 0.5, "buckets": buckets}
    depths, seen = set(), set()
    for seed in (1, 12, 7, 12, 1):  # of three depths, whatever the version of torch
        before = decisions.made
        found = model({**options, "unit": "step"}, seed=seed)
        depth = found.controller.depth
        counts = [tuple(found.counts(scale)) for scale in range(len(SQUARE))]
        stood = {
            (scale, depth if scale > depth else None, *counts[: scale + 1]) for scale in range(1, len(SQUARE))
        }
        assert decisions.made - before == len(stood - seen)
        seen |= stood
        depths.add(depth)
        assert_same(found, traced("infinity")(options, seed=seed))
    assert len(depths) == 3


def test_the_plan_that_was_unused_longest_gives_way():
    plans = Plans()
    for key in range(300):
        plans.keep(key, -key)
        assert plans.find(1) == (-1 if key else None)
    assert plans.find(0) is None and plans.find(44) is None and plans.find(299) == -299
    assert sum(plans.find(key) is not None for key in range(300)) == 256


@pytest.mark.nightly
def test_other_batches_and_schedules_have_plans_of_their_own(model):
    keep = {-2: 0.5, -1: {1: 0.2, 2: 0.0, 3: 0.4}}
    options = {**OPEN, "keep": keep, "entropy_source": "previous_scale", "ranking_depth": 0.0}
    cases = [{}, {"images": 3, "schedule": WIDE}]
    for given in [*cases, *reversed(cases)]:
        assert_same(model({**options, "unit": "step"}, **given), traced("infinity")(options, **given))


def test_an_interrupted_generation_leaves_no_wrong_plan(model):
    options = {**GIVEN, "ranking_depth": 0.5}
    with pytest.raises(KeyboardInterrupt):
        model({**options, "unit": "step"}, fail_at=4)
    assert_same(model({**options, "unit": "step"}), traced("infinity")(options))


def test_maps_that_are_missing_change_the_plan(monkeypatch, decisions, model):
    """The plan of a generation whose layers left maps is not that of one where they left none."""
    options = {**GIVEN, "ranking_depth": 0.5, "unit": "step"}
    whole = model(options)
    seen = decisions.made
    run, skipped = whole_step.WholeStep.run, []

    def by_blocks(self, controller, arguments, sizes):
        if controller.scale == 3:
            skipped.append(controller.scale)
            return None
        return run(self, controller, arguments, sizes)

    with monkeypatch.context() as patch:
        patch.setattr(whole_step.WholeStep, "run", by_blocks)
        mixed = model(options)
    assert skipped and identical(mixed.logits, whole.logits)
    # The same rows are missing and the same maps are there, so its later scales are those that are known.
    assert decisions.made == seen
    with monkeypatch.context() as patch:
        patch.setattr("toprovar_fx.runtime.ranking.Ranking.__contains__", lambda self, layer: False)
        patch.setattr("toprovar_fx.runtime.maps.ScaleMaps.layers", property(lambda self: ()))
        unranked = model(options)
    assert decisions.made > seen
    assert unranked.counts(len(SQUARE) - 1) != whole.counts(len(SQUARE) - 1)
