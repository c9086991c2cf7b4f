"""Reconstruction loss of the tokenizer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(
    output: Tensor, target: Tensor, *, squared: float = 2.0, chroma: float = 1.0, edge: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Distance of images in [-1, 1] and their mean squared error.

    Absolute error alone lets a young tokenizer settle on grey, its median colour: the squared term and the
    separate colour differences keep colours alive, and the differences of neighbours keep textures and edges.

    Args:
        output: reconstructions ``[B, 3, H, W]``.
        target: originals ``[B, 3, H, W]``.
        squared: weight of the squared error beside the absolute error.
        chroma: weight of the colour differences.
        edge: weight of the differences of neighbouring pixels.

    Returns:
        The scalar loss and the detached mean squared error per image ``[B]``, both float32.
    """
    difference = output.float() - target.float()
    red, green, blue = difference.unbind(1)
    squares = difference.square().mean((1, 2, 3))
    colour = (red - green).abs().mean() + (blue - 0.5 * (red + green)).abs().mean()
    steps = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    loss = difference.abs().mean() + squared * squares.mean() + chroma * colour + edge * steps
    return loss, squares.detach()


def psnr(squared_error: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of images in [-1, 1] (peak 2), averaged over images ``[B] -> []``."""
    return (10.0 * torch.log10(4.0 / squared_error.clamp_min(1e-12))).mean()


def commitment_loss(z: Tensor, summed: Tensor, bits: int) -> Tensor:
    """Squared distance of a latent to its quantisation, in units of the squared code level ``1 / bits``."""
    return F.mse_loss(z.float(), summed.detach().float()) * bits
