"""How much fine detail an image has, and how much a scale added: the features of SkipVAR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Radius of the low frequencies, as a share of half the shorter side.
_LOW = 0.4


def sobel_change(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean absolute difference of two images' gradient magnitudes.

    Args:
        before: images ``[B, 3, H, W]``.
        after: the same images with another scale, ``[B, 3, H, W]``.

    Returns:
        float32, ``[B]``.
    """
    return (_gradients(after) - _gradients(before)).abs().mean((1, 2, 3))


def high_frequency_share(image: Tensor) -> Tensor:
    """Return the share of the Fourier amplitudes that lie outside the low frequencies.

    Args:
        image: ``[B, 3, H, W]``.

    Returns:
        float32 in [0, 1], ``[B]``.
    """
    amplitude = torch.fft.fftshift(torch.fft.fft2(_grey(image)), dim=(-2, -1)).abs()
    height, width = amplitude.shape[-2:]
    rows = torch.arange(height, device=image.device) - height // 2
    columns = torch.arange(width, device=image.device) - width // 2
    distance = (rows[:, None] ** 2 + columns**2).sqrt()
    high = distance > int(_LOW * min(height, width) / 2)
    return (amplitude * high).sum((1, 2, 3)) / (amplitude.sum((1, 2, 3)) + 1e-6)


def _grey(image: Tensor) -> Tensor:
    return image.float().mean(1, keepdim=True)


def _gradients(image: Tensor) -> Tensor:
    """Magnitude of the Sobel gradients, zero beyond the border, ``[B, 1, H, W]``."""
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=image.device)
    both = torch.stack((kernel, kernel.T))[:, None]
    return F.conv2d(_grey(image), both, padding=1).square().sum(1, keepdim=True).sqrt()
