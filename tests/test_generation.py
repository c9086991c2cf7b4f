"""What opens a generation, and which of its scales may begin."""

from __future__ import annotations

import pytest
import torch

import toprovar_fx
from toprovar_fx.errors import ScheduleError

from .models.subjects import MANY_GRAPHS, OPEN, SQUARE, TinyPreNorm

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


@pytest.mark.parametrize("scale", [3, -1, "0", 1.0, True])
def test_scales_that_are_not_there(scale):
    with toprovar_fx.generation(SCHEDULE) as run:
        with pytest.raises(ScheduleError, match=f"scale {scale!r} of 3: expected 0 .. 2"):
            run.begin_scale(scale)
        assert run.begin_scale(0) and run.begin_scale(2)


def test_a_scale_does_not_run_again_on_caches_that_lack_rows():
    subject = TinyPreNorm(True, True, depth=3)
    with MANY_GRAPHS, torch.inference_mode(), toprovar_fx.generation(SQUARE) as run:
        options = {**OPEN, "keep": {4: 0.5}, "lowering": "eager"}
        forward = torch.compile(subject.model, backend="toprovar", options=options)
        subject.use(SQUARE)
        state = subject.state(1, SQUARE)
        for scale in range(5):
            run.begin_scale(scale)
            hidden = subject.hidden(1, scale, SQUARE, 1)
            forward(*subject.arguments(hidden, state, SQUARE.ends[scale]))
        with pytest.raises(ScheduleError, match="scale 4 after scale 4, on caches that lack rows"):
            run.begin_scale(4)
