"""Profiles made by hand, for tests that need no model."""

from __future__ import annotations

import json
from typing import Any

from toprovar_fx import Options, Profile, Schedule
from toprovar_fx.calibration.profile import Observed
from toprovar_fx.calibration.use import BOUND, CARRIED

SCHEDULE = Schedule(tuple((side, side) for side in (1, 2, 3, 4, 6, 8)))
LAYERS = 3


def made(options: dict[str, object] | None = None, **changes: Any) -> Profile:
    """A profile of three layers that prunes the two last of six scales."""
    settings = Options.parse({"preset": "criterion", **(options or {})}).as_dict()
    scales = len(SCHEDULE)
    nothing = tuple((None,) * LAYERS for _ in range(1))
    table = nothing + tuple((1.5,) * LAYERS for _ in range(scales - 1))
    observed = Observed(
        images=2,
        depth=(3, None),
        low_entropy_ratio=((None, 0.5, 0.4, 0.5, 0.5, 0.6),) * 2,
        attention_entropy_nats=table,
        attention_entropy_std_nats=table,
        scope=nothing + tuple((0.5, 0.25, 1.0) for _ in range(scales - 1)),
        scope_std=(0.1, 0.0, 0.2),
        agreement={"depth": 0.5, "roles": 1.0, "kept_tokens": 0.75},
    )
    values: dict[str, Any] = {
        "model": "ab" * 32,
        "layers": LAYERS,
        "schedule": SCHEDULE,
        "settings": json.loads(json.dumps({name: settings[name] for name in (*BOUND, *CARRIED)})),
        "depth": 3,
        "scope": (0.5, 0.25, 1.0),
        "kept": {4: (36, 18, 36), 5: (64, 0, 17)},
        "observed": observed,
        "torch": "2.13.0",
        "toprovar_fx": "0.1.0",
    }
    return Profile(**{**values, **changes})
