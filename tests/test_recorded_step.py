"""Maps and updates of a recorded step's layers enter and leave it as few tensors, and are those of all."""

from __future__ import annotations

import pytest

from toprovar_fx.runtime import step_run
from toprovar_fx.runtime.maps import Block, ScaleMaps
from toprovar_fx.runtime.recorded_step import Bundles, Origin, RecordedStep

from .models.subjects import generate, identical
from .replayed_steps import DECIDED, Kept, compiled

# At scale 5, layer 1 gets the map of scale 3 and the update of scale 2, layers 2 and 3 those of scale 4.
KEEP = {3: {1: 0.5}, 4: {1: 0.0}, 5: {1: 0.3, 2: 0.6, 3: 0.0}}


@pytest.fixture
def bundles(monkeypatch: pytest.MonkeyPatch) -> list[Bundles]:
    """Of every step that is recorded."""
    seen: list[Bundles] = []
    begin = RecordedStep.__init__

    def noted(self, pattern, telling, bundles, *others) -> None:
        seen.append(bundles)
        begin(self, pattern, telling, bundles, *others)

    monkeypatch.setattr(RecordedStep, "__init__", noted)
    return seen


def assert_same_images(keep: dict[int, object], **more: object) -> None:
    subject, options = Kept(), {**DECIDED, "keep": keep, **more}
    plain, forward = compiled(subject, {**options, "unit": "block"}), compiled(subject, options)
    for seed in (1, 2, 1):
        found, expected = (generate(subject, call, seed=seed).logits for call in (forward, plain))
        assert identical(found, expected)


def wanted(origins: tuple[Origin, ...] | None) -> list[tuple[int, ...]] | None:
    return None if origins is None else [origin.wanted for origin in origins]


def test_values_of_two_scales(recorder, bundles):
    assert_same_images(KEEP)
    assert [wanted(each.updates) for each in bundles][-3:] == [[(1,)], [(1,)], [(2, 3), (1,)]]
    assert [wanted(each.maps) for each in bundles][-3:] == [[(1,)], [], [(2,), (1,)]]
    assert [each.leave for each in bundles][-4:] == [True, False, True, False]
    assert recorder.replays > recorder.records


def test_a_map_that_is_completed_is_one_of_its_scale(recorder, bundles):
    """Layer 1 computes some tokens at two scales, and is ranked by what it measured at the one before."""
    assert_same_images({4: {1: 0.5, 2: 0.5}, 5: {1: 0.5, 2: 0.5}}, pruned_kv="keep")
    assert [wanted(each.maps) for each in bundles][-2:] == [[(1, 2)], [(1, 2)]]


def test_large_updates_enter_and_leave_alone(recorder, bundles, monkeypatch):
    monkeypatch.setattr(step_run, "_MOST_BYTES", 0)
    assert_same_images(KEEP)
    assert bundles and not any(each.leave or each.updates for each in bundles)
    assert wanted(bundles[-1].maps) == [(2,), (1,)]


def test_maps_that_are_no_block_enter_alone_and_updates_with_them(recorder, bundles, monkeypatch):
    monkeypatch.setattr("toprovar_fx.runtime.layer_memory.LayerMemory.map_blocks", lambda *given: None)
    assert_same_images(KEEP)
    assert bundles and not any(each.maps or each.updates for each in bundles)


def test_images_that_come_by_ever_other_ways_share_a_recording(recorder, bundles, monkeypatch):
    """The second image has blocks of one layer each, which the recordings of the first do not take."""
    monkeypatch.setattr(step_run, "_MOST_BUNDLES", 1)
    subject, together = Kept(), ScaleMaps.put_together
    plain = compiled(subject, {**DECIDED, "keep": KEEP, "unit": "block"})
    forward = compiled(subject, {**DECIDED, "keep": KEEP})

    def apart(self: ScaleMaps, block: Block) -> None:
        for layer, part in block.parts.items():
            together(self, Block.of(block.scale, (layer,), part[None]))

    counts = []
    for seed, put in ((1, together), (2, apart), (3, apart), (1, together)):
        monkeypatch.setattr(ScaleMaps, "put_together", put)
        found, expected = (generate(subject, call, seed=seed).logits for call in (forward, plain))
        assert identical(found, expected)
        counts.append(len(bundles))
    assert counts[0] < counts[1] == counts[2] == counts[3], "the third and fourth find what they need"
    assert any(each.updates for each in bundles[: counts[0]])
    assert all(each.updates is None is each.maps for each in bundles[counts[0] :])


def test_what_nobody_records_is_the_same(recorder, bundles):
    recorder.fails = "operation not permitted when stream is capturing"
    assert_same_images(KEEP)
    assert any(each.updates for each in bundles)
