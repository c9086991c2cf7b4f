"""Where objects stand: canonical slots with jitter, far enough apart that objects never touch."""

from __future__ import annotations

import torch
from torch import Tensor

from .hashing import uniform
from .scene import MAX_OBJECTS

# Row per layout: CENTRE, HORIZONTAL, VERTICAL, ROW, TRIANGLE, GRID. The slots of a layout are at least
# 2 * 1.1 * largest radius + 2 * jitter apart along one axis, the condition for objects that never touch.
_SLOTS = (
    ((128, 128), (0, 0), (0, 0), (0, 0)),
    ((66, 128), (190, 128), (0, 0), (0, 0)),
    ((128, 66), (128, 190), (0, 0), (0, 0)),
    ((46, 128), (128, 128), (210, 128), (0, 0)),
    ((128, 72), (66, 182), (190, 182), (0, 0)),
    ((70, 70), (186, 70), (70, 186), (186, 186)),
)
_RADII = ((44, 58), (40, 50), (40, 50), (27, 32), (30, 36), (30, 36))  # smallest, largest
_JITTER = (14, 5, 5, 4, 7, 7)  # each object alone, both axes
_DRIFT = ((0, 0), (2, 14), (14, 2), (0, 26), (6, 6), (6, 6))  # all objects together, x and y
_MAX_ANGLE = 0.14  # small: a rotated square must not look like a diamond, nor a triangle point sideways
_OUTSIDE = -1.0e4


def place(n: Tensor, layout: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw positions, radii and rotations.

    Args:
        n: Objects per image, int64 ``[B]``.
        layout: int64 ``[B]``, see `scene`.
        keys: int64 ``[B]`` of `hashing.image_keys`; streams 20 to 23 are used.

    Returns:
        ``cx, cy, radius, angle``, float32 ``[B, 4]``; slots from ``n`` on lie far outside the image.
    """
    device = n.device
    slots = torch.tensor(_SLOTS, device=device, dtype=torch.float32)[layout]
    radii = torch.tensor(_RADII, device=device, dtype=torch.float32)[layout]
    jitter = torch.tensor(_JITTER, device=device, dtype=torch.float32)[layout]
    drift = torch.tensor(_DRIFT, device=device, dtype=torch.float32)[layout]

    own = uniform(keys, 20, 2 * MAX_OBJECTS).view(-1, MAX_OBJECTS, 2) * 2 - 1
    shared = uniform(keys, 21, 2)[:, None] * 2 - 1
    centres = slots + own * jitter[:, None, None] + shared * drift[:, None]

    sizes = uniform(keys, 22, 1 + MAX_OBJECTS)
    base = radii[:, :1] + (radii[:, 1:] - radii[:, :1]) * sizes[:, :1]
    radius = base * (0.94 + 0.06 * sizes[:, 1:])
    angle = (uniform(keys, 23, MAX_OBJECTS) * 2 - 1) * _MAX_ANGLE

    empty = torch.arange(MAX_OBJECTS, device=device) >= n[:, None]
    cx = centres[..., 0].masked_fill(empty, _OUTSIDE)
    cy = centres[..., 1].masked_fill(empty, _OUTSIDE)
    return cx, cy, radius.masked_fill(empty, 1.0), angle.masked_fill(empty, 0.0)
