"""ToProVAR-FX: a `torch.compile` backend that prunes visual autoregressive models.

import torch, toprovar_fx
pipe = toprovar_fx.InfinityPipeline.from_pretrained("scenes")
pipe.transformer = torch.compile(pipe.transformer, backend="toprovar", options={"preset": "fast"})
images = pipe("a red circle left of a blue square", seed=1).images
"""

from .accelerate import Accelerated, accelerate, restore
from .calibration.calibrate import calibrate
from .calibration.calibration import Calibration
from .calibration.profile import Profile
from .criteria.score_registry import ScoreContext
from .errors import ToProVARError
from .explanation import Explanation, explain, explaining
from .extensions import register_pass, register_score, unregister_pass, unregister_score
from .options import Options, options_table, presets_table
from .pipeline import InfinityPipeline, PipelineOutput
from .runtime.generation import current_generation, dense, generation
from .schedules import Schedule
from .version import __version__ as __version__

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
    "dense",
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
