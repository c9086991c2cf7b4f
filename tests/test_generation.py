"""What opens a generation, and the order of its scales."""

from __future__ import annotations

import pytest

import toprovar_fx
from toprovar_fx.errors import ScheduleError

SCHEDULE = toprovar_fx.Schedule(((1, 1), (2, 2), (4, 4)))


@pytest.mark.parametrize(
    ("schedule", "images", "expected"),
    [
        (((1, 1), (2, 2)), 1, "expected a toprovar_fx.Schedule"),
        ("scenes", 1, "expected a toprovar_fx.Schedule"),
        (SCHEDULE, 0, "images=0: expected a number of images, 1 or more"),
        (SCHEDULE, -1, "images=-1"),
        (SCHEDULE, "1", "images='1'"),
        (SCHEDULE, 1.5, "images=1.5"),
    ],
)
def test_what_is_no_schedule_or_number_of_images(schedule, images, expected):
    with pytest.raises(ScheduleError, match=expected), toprovar_fx.generation(schedule, images):
        pass
    assert toprovar_fx.current_generation() is None


@pytest.mark.parametrize("scales", [[3], [-1], ["0"], [1.0], [0, 0], [0, 2, 1], [0, 1, 2, 3]])
def test_scales_that_are_not_there_or_out_of_order(scales):
    """A scale that runs again, or late, would meet caches of other lengths than the controller's."""
    *before, wrong = scales
    with toprovar_fx.generation(SCHEDULE) as run:
        for scale in before:
            assert run.begin_scale(scale)
        with pytest.raises(ScheduleError, match=f"scale {wrong!r} after scale {run.scale}: expected"):
            run.begin_scale(wrong)


def test_scales_may_be_left_out():
    with toprovar_fx.generation(SCHEDULE) as run:
        assert run.begin_scale(0) and run.begin_scale(2)
