"""A pipeline out of official checkpoints: a transformer, its autoencoder and its T5 encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .checkpoints import check_fit, load_into, read_checkpoint
from .loading.headers import read_header
from .loading.layouts import Parts
from .loading.sizes import complete_vae_names
from .models.configs import config_named
from .models.infinity import Infinity
from .models.text_encoder import T5TextEncoder
from .models.vae import VAE_CONFIGS, ImageVAE
from .schedules import Schedule

if TYPE_CHECKING:
    from .pipeline import InfinityPipeline


def load_parts(
    parts: Parts, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", name: str = "Infinity"
) -> InfinityPipeline:
    """Read official checkpoints onto the CPU; nothing is read unless the headers of all of them fit.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit.
        OptionError: there is a text encoder, and the extra `text` is not installed.
    """
    from .pipeline import InfinityPipeline

    with torch.device("meta"):
        model, autoencoder = Infinity(parts.config).to(dtype), ImageVAE(parts.vae_config).to(dtype)
    check_parts(parts, model, autoencoder, name)
    text_encoder = None
    if parts.text_encoder is not None:
        text_encoder = T5TextEncoder.from_folder(parts.text_encoder, device=device)
    load_into(model, read_checkpoint(parts.transformer), name=f"the {name} transformer")
    state = complete_vae_names(read_checkpoint(parts.vae), autoencoder.state_dict())
    load_into(autoencoder, state, name=f"the {name} autoencoder")
    return InfinityPipeline(model, autoencoder, text_encoder, parts.schedule)


def check_parts(parts: Parts, model: nn.Module, autoencoder: nn.Module, name: str = "Infinity") -> None:
    """Check the headers of official checkpoints against modules, which may be on the ``meta`` device.

    Raises:
        CheckpointError: keys are missing, superfluous or mis-shaped.
    """
    check_fit(model, read_header(parts.transformer), name=f"the {name} transformer")
    header = complete_vae_names(read_header(parts.vae), autoencoder.state_dict())
    check_fit(autoencoder, header, name=f"the {name} autoencoder")


def load_official(
    name: str, transformer: str | Path, vae: str | Path, schedule: Schedule, dtype: torch.dtype
) -> InfinityPipeline:
    """Read official checkpoints of a named model onto the CPU, without a text encoder.

    Raises:
        OptionError: unknown name.
        CheckpointError: a file is missing, damaged or does not fit.
    """
    parts = Parts(Path(transformer), Path(vae), None, config_named(name), VAE_CONFIGS[name], schedule)
    return load_parts(parts, dtype, name=name)
