"""Textured backgrounds: each family is a mixture of eight shared patterns, so a batch needs no branches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .hashing import uniform
from .palette import BACKGROUND_COLOURS, BACKGROUND_LIMIT, BACKGROUND_MIXTURES
from .scene import IMAGE_SIZE

_TILE = 32.0
_TWO_PI = 2 * math.pi


def _noise(keys: Tensor, stream: int, rows: int, columns: int) -> Tensor:
    """Value noise in [-1, 1], float32 [B, 256, 256]: a random grid, enlarged linearly."""
    grid = uniform(keys, stream, rows * columns).view(-1, 1, rows, columns) * 2 - 1
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=False)[:, 0]


def _tiles(x: Tensor, y: Tensor, keys: Tensor) -> Tensor:
    """Square tiles of slightly different tone, separated by dark lines."""
    shift = uniform(keys, 60, 2)[:, :, None, None] * _TILE
    x, y = x + shift[:, 0], y + shift[:, 1]
    column, row = (x / _TILE).floor(), (y / _TILE).floor()
    # Any fixed irrational pair of numbers spreads the tones.
    tone = torch.frac(column * 0.754877 + row * 0.569840 + uniform(keys, 61, 1)[:, :, None]) - 0.5
    from_edge = torch.minimum((x - column * _TILE - _TILE / 2).abs(), x.new_tensor(_TILE / 2))
    from_edge = _TILE / 2 - torch.maximum(from_edge, (y - row * _TILE - _TILE / 2).abs())
    line = (1.8 - from_edge).clamp(0, 1)
    return tone * (1 - line) - 1.1 * line


def background(family: Tensor, keys: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Draw backgrounds.

    Args:
        family: Index into ``vocab.BACKGROUNDS``, int64 ``[B]``.
        keys: Noise keys, int64 ``[B]``.
        x: Pixel centres, float32 ``[1, 256, 256]``.
        y: Pixel centres, float32 ``[1, 256, 256]``.

    Returns:
        float32 ``[B, 256, 256, 3]``, sRGB in ``[0, BACKGROUND_LIMIT]``.
    """
    device = keys.device
    weight = torch.tensor(BACKGROUND_MIXTURES, device=device)[family]
    soft = _noise(keys, 50, 5, 5)
    phase = uniform(keys, 51, 2)[:, :, None, None] * _TWO_PI
    patterns = (
        soft,
        _noise(keys, 52, 40, 40),
        _noise(keys, 53, IMAGE_SIZE // 2, IMAGE_SIZE // 2),
        _noise(keys, 54, 20, 110),
        _noise(keys, 55, 110, 9),
        _tiles(x, y, keys),
        torch.sin(x * (_TWO_PI / 7) + phase[:, 0]) * torch.sin(y * (_TWO_PI / 7) + phase[:, 1]),
        torch.sin((y + 10 * soft + 3 * torch.sin(x / 19 + phase[:, 0])) * (_TWO_PI / 17) + phase[:, 1]),
    )
    field = sum(weight[:, index, None, None] * pattern for index, pattern in enumerate(patterns))
    corner = ((x - IMAGE_SIZE / 2).square() + (y - IMAGE_SIZE / 2).square()) / (IMAGE_SIZE / 2) ** 2
    light = (1 + field) * (1.06 - 0.16 * corner)
    base = torch.tensor(BACKGROUND_COLOURS, device=device)[family]
    base = base * (1 + 0.16 * (uniform(keys, 56, 3) - 0.5)) * (0.92 + 0.2 * uniform(keys, 57, 1))
    return (light[..., None] * base[:, None, None]).clamp(0.02, BACKGROUND_LIMIT)
