"""ToProVAR-FX: a `torch.compile` backend that prunes visual autoregressive models.

import torch, toprovar_fx
pipe = toprovar_fx.InfinityPipeline.from_pretrained("scenes")
pipe.transformer = torch.compile(pipe.transformer, backend="toprovar", options={"preset": "fast"})
images = pipe("a red circle left of a blue square", seed=1).images
"""

from .errors import ToProVARError
from .options import Options, options_table, presets_table
from .pipeline import InfinityPipeline, PipelineOutput
from .runtime.generation import current_generation, generation
from .schedules import Schedule

__version__ = "0.1.0"

__all__ = [
    "InfinityPipeline",
    "Options",
    "PipelineOutput",
    "Schedule",
    "ToProVARError",
    "current_generation",
    "generation",
    "options_table",
    "presets_table",
]
