"""Distances between images, and between sets of images: PSNR, SSIM, Frechet distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ToProVARError

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
_RANGE = 255.0


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Check two image batches and return them as float64 [B, 3, H, W]."""
    for images in (a, b):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            got = f"{images.dtype} {tuple(images.shape)}"
            raise ToProVARError(f"images are {got}; expected torch.uint8 (B, height, width, 3)")
    if a.shape != b.shape:
        raise ToProVARError(f"images differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")
    return a.permute(0, 3, 1, 2).double(), b.permute(0, 3, 1, 2).double()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every image pair, float64 ``[B]`` in dB; infinite for equal images.

    Args:
        a: Images, uint8 ``[B, H, W, 3]``.
        b: Images, uint8 ``[B, H, W, 3]``.

    Raises:
        ToProVARError: Another type, or different shapes.
    """
    first, second = _pair(a, b)
    return 10 * torch.log10(_RANGE**2 / (first - second).square().mean(dim=(1, 2, 3)))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of every image pair, float64 ``[B]``, at most 1.

    Wang et al. 2004: Gaussian window of 11 x 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, population
    covariance, the mean over all windows inside the image and over the three channels.

    Args:
        a: Images, uint8 ``[B, H, W, 3]``, at least 11 pixels a side.
        b: Images, uint8 ``[B, H, W, 3]``.

    Raises:
        ToProVARError: Another type, different shapes, or images smaller than the window.
    """
    first, second = _pair(a, b)
    if min(first.shape[2:]) < _WINDOW:
        raise ToProVARError(f"images are {tuple(a.shape[1:3])} pixels; SSIM needs at least {_WINDOW} a side")
    offset = torch.arange(_WINDOW, device=first.device, dtype=first.dtype) - _WINDOW // 2
    weight = (-offset.square() / (2 * _SIGMA**2)).exp()
    weight = (weight / weight.sum()).expand(3, 1, 1, _WINDOW)

    def window_mean(images: Tensor) -> Tensor:
        rows = F.conv2d(images, weight, groups=3)
        return F.conv2d(rows, weight.transpose(2, 3), groups=3)

    mean_a, mean_b = window_mean(first), window_mean(second)
    var_a = window_mean(first * first) - mean_a * mean_a
    var_b = window_mean(second * second) - mean_b * mean_b
    covariance = window_mean(first * second) - mean_a * mean_b
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (FID, Heusel et al. 2017).

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``. The trace of the root comes from the eigenvalues of
    the symmetric ``C_a^(1/2) C_b C_a^(1/2)``, which stays real where a general matrix root does not.

    Args:
        a: Features, ``[N, D]``, N at least 2; here those of the image tokenizer.
        b: Features, ``[M, D]``, M at least 2.

    Raises:
        ToProVARError: The features are not matrices of equal width with two rows or more.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ToProVARError(f"features are {shapes}; expected (N, D) and (M, D) with N and M of at least 2")
    a, b = a.double(), b.double()
    covariance_a, covariance_b = torch.cov(a.T).view(a.shape[1], -1), torch.cov(b.T).view(a.shape[1], -1)
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    root_trace = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp_min(0).sqrt().sum()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    distance = means + covariance_a.trace() + covariance_b.trace() - 2 * root_trace
    return max(0.0, distance.item())
