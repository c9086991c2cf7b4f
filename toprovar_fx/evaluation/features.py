"""Features of images for the Frechet distance: the tokenizer's latents, pooled over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scenes.prompts import EvalPrompt, scenes_for_prompts
from ..scenes.render import render

if TYPE_CHECKING:
    from ..models.vae import ImageVAE

CHUNK = 50


def image_features(vae: ImageVAE, images: NDArray[np.uint8]) -> Tensor:
    """Mean and standard deviation over the image of every latent channel.

    Args:
        vae: the tokenizer.
        images: uint8 ``[N, H, W, 3]``.

    Returns:
        float32 ``[N, 2 d]`` on the CPU.
    """
    return torch.cat(
        [
            _pooled(vae, torch.from_numpy(images[at : at + CHUNK]).permute(0, 3, 1, 2).float() / 127.5 - 1)
            for at in range(0, len(images), CHUNK)
        ]
    )


def real_features(vae: ImageVAE, prompts: Sequence[EvalPrompt], seed: int = 0) -> Tensor:
    """Features of ground-truth scenes, one that fulfils each prompt, ``[N, 2 d]``."""
    parts = [prompts[at : at + CHUNK] for at in range(0, len(prompts), CHUNK)]
    scenes = (scenes_for_prompts(part, seed=seed + at) for at, part in enumerate(parts))
    device = next(vae.parameters()).device
    return torch.cat([_pooled(vae, render(batch.to(device))) for batch in scenes])


def _pooled(vae: ImageVAE, images: Tensor) -> Tensor:
    parameter = next(vae.parameters())
    with torch.inference_mode():
        latent = vae.encode(images.to(parameter)).float().flatten(2)
    return torch.cat((latent.mean(2), latent.std(2)), 1).cpu()
