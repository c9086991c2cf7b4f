"""Models whose caches stay in place, compiled as whole steps: what replays are tested with, on any device."""

from __future__ import annotations

from typing import Any

import torch

from .models.fixtures import traced
from .models.subjects import OPEN, State, TinyInfinity

KEEP = {3: 0.5, 4: {1: 0.25, 2: 0.0, 3: 0.7}, 5: {1: 0.3, 2: 0.6}}
DECIDED = {**OPEN, "keep": KEEP, "entropy_source": "previous_scale", "unit": "step"}
LOSSLESS = {"preset": "lossless", "unit": "step"}


def compiled(subject: TinyInfinity, options: dict[str, object], **more: object) -> Any:
    settings = {"lowering": "eager", **options, **more}
    if settings["lowering"] == "eager" and subject.model is traced("infinity").subject.model:
        return traced("infinity").under(settings)
    return torch.compile(subject.model, backend="toprovar", options=settings)


class Kept(TinyInfinity):
    """The model of all sessions' traces, or one of its own on a device; its caches stay in place.

    Args:
        given: where the model is, and of which type; with none of it the model is that of the traces.
    """

    def __init__(self, **given: Any) -> None:
        if given:
            super().__init__(**given)
        else:
            vars(self).update(vars(traced("infinity").subject))

    def state(self, images: int, schedule: Any) -> State:
        fresh = super().state(images, schedule)
        known = self.__dict__.setdefault("known", {})
        return State(known.setdefault((images, schedule), fresh).cache, fresh.context)
