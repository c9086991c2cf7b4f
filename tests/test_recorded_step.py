"""The updates of a recorded step's layers enter and leave it as one tensor, and are those of every layer."""

from __future__ import annotations

import pytest

from toprovar_fx.runtime import step_run
from toprovar_fx.runtime.recorded_step import Bundles, RecordedStep

from .models.subjects import generate, identical
from .replayed_steps import DECIDED, Kept, compiled

# At scale 5, layer 1 gets the update of scale 2, layers 2 and 3 those of scale 4.
KEEP = {3: {1: 0.5}, 4: {1: 0.25}, 5: {1: 0.3, 2: 0.6, 3: 0.0}}


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


def assert_same_images(keep: dict[int, object]) -> None:
    subject, options = Kept(), {**DECIDED, "keep": keep}
    plain, forward = compiled(subject, {**options, "unit": "block"}), compiled(subject, options)
    for seed in (1, 2, 1):
        assert identical(
            generate(subject, forward, seed=seed).logits, generate(subject, plain, seed=seed).logits
        )


def test_updates_of_two_scales(recorder, bundles):
    assert_same_images(KEEP)
    found = [[origin.wanted for origin in each.origins] for each in bundles if each.origins]
    assert found == [[(1,)], [(1,)], [(1,), (2, 3)]]
    assert any(each.leave for each in bundles)
    assert recorder.replays > recorder.records


def test_large_updates_enter_and_leave_alone(recorder, bundles, monkeypatch):
    monkeypatch.setattr(step_run, "_MOST_BYTES", 0)
    assert_same_images(KEEP)
    assert bundles and not any(each.leave or each.origins for each in bundles)


def test_what_nobody_records_is_the_same(recorder, bundles):
    recorder.fails = "operation not permitted when stream is capturing"
    assert_same_images(KEEP)
    assert any(each.origins for each in bundles)
