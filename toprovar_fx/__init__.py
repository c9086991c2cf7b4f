"""ToProVAR-FX: a `torch.compile` backend that prunes visual autoregressive models.

import torch, toprovar_fx
pipe = toprovar_fx.InfinityPipeline.from_pretrained("scenes")
pipe.transformer = torch.compile(pipe.transformer, backend="toprovar", options={"preset": "fast"})
images = pipe("a red circle left of a blue square", seed=1).images
"""

from typing import TYPE_CHECKING, Any

from .accelerate import Accelerated, accelerate, restore
from .calibration.profile import Profile
from .criteria.score_registry import ScoreContext
from .errors import ToProVARError
from .extensions import register_pass, register_score, unregister_pass, unregister_score
from .options import Options, options_table, presets_table
from .pipeline import InfinityPipeline, PipelineOutput
from .runtime.generation import current_generation, generation
from .schedules import Schedule

if TYPE_CHECKING:
    from .calibration.calibrate import calibrate
    from .calibration.calibration import Calibration
    from .explanation import Explanation, explain, explaining

__version__ = "0.1.0"

__all__ = [
    "Accelerated",
    "Calibration",
    "Explanation",
    "InfinityPipeline",
    "Options",
    "PipelineOutput",
    "Profile",
    "Schedule",
    "ScoreContext",
    "ToProVARError",
    "accelerate",
    "calibrate",
    "current_generation",
    "explain",
    "explaining",
    "generation",
    "options_table",
    "presets_table",
    "register_pass",
    "register_score",
    "restore",
    "unregister_pass",
    "unregister_score",
]


def __getattr__(name: str) -> Any:
    # The backend takes seconds to import, and whoever only draws images does not need it.
    if name in ("Explanation", "explain", "explaining"):
        from . import explanation

        return getattr(explanation, name)
    if name in ("Calibration", "calibrate"):
        from .calibration import calibrate, calibration

        return {"Calibration": calibration.Calibration, "calibrate": calibrate.calibrate}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
