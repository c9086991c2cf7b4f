"""Signed distance functions of the eight shapes, for planes of local coordinates.

Coordinates are in units of the object's radius, u to the right and v downwards; negative distances are
inside. They are exact near straight and round edges, which is all that antialiasing and a soft rim need.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def circle(u: Tensor, v: Tensor) -> Tensor:
    """Disc."""
    return torch.sqrt(u * u + v * v) - 0.90


def square(u: Tensor, v: Tensor) -> Tensor:
    """Square with slightly rounded corners."""
    a, b = u.abs() - 0.73, v.abs() - 0.73
    outside = torch.sqrt(a.clamp_min(0).square() + b.clamp_min(0).square())
    return outside + torch.maximum(a, b).clamp_max(0) - 0.08


def triangle(u: Tensor, v: Tensor) -> Tensor:
    """Equilateral triangle standing on its base; its bounding box, not its centroid, is centred."""
    v = v - 0.27
    return torch.maximum(v, math.sqrt(0.75) * u.abs() - 0.5 * v) - 0.56


def star(u: Tensor, v: Tensor) -> Tensor:
    """Five-pointed star, one point up: fold the plane into half a point, then one edge is left."""
    v = v - 0.06
    sector = 2 * math.pi / 5
    theta = torch.atan2(u, -v)
    folded = (torch.remainder(theta + sector / 2, sector) - sector / 2).abs()
    rho = torch.sqrt(u * u + v * v)
    across, along = rho * folded.sin(), rho * folded.cos()
    tip, notch = 1.08, 0.50
    edge_x, edge_y = notch * math.sin(sector / 2), notch * math.cos(sector / 2) - tip
    length = math.hypot(edge_x, edge_y)
    return (edge_x * (along - tip) - edge_y * across) / length


def heart(u: Tensor, v: Tensor) -> Tensor:
    """Heart: a square on its corner, and a disc on each of its two upper sides."""
    side = 0.57
    u, v = u.abs(), v - 0.10
    body = (u + v.abs()) * math.sqrt(0.5) - side
    offset = side * math.sqrt(0.5)
    lobe = torch.sqrt((u - offset).square() + (v + offset).square()) - side
    return torch.minimum(body, lobe)


def cross(u: Tensor, v: Tensor) -> Tensor:
    """Upright cross with four equal arms."""
    u, v = u.abs(), v.abs()
    return torch.minimum(torch.maximum(u - 0.95, v - 0.34), torch.maximum(u - 0.34, v - 0.95))


def ring(u: Tensor, v: Tensor) -> Tensor:
    """Ring."""
    return (torch.sqrt(u * u + v * v) - 0.70).abs() - 0.25


def crescent(u: Tensor, v: Tensor) -> Tensor:
    """Moon open to the right: a disc without a smaller disc."""
    outer, inner, offset = 0.97, 0.80, 0.45
    u, v = u - 0.20, v.abs()
    tip_u = (outer * outer - inner * inner + offset * offset) / (2 * offset)
    tip_v = math.sqrt(outer * outer - tip_u * tip_u)
    arcs = torch.maximum(torch.sqrt(u * u + v * v) - outer, inner - torch.sqrt((u - offset).square() + v * v))
    # In the opening the tips are nearer than either arc; without this the shadow would close the disc.
    opening = u * tip_v - v * tip_u > offset * (tip_v - v).clamp_min(0)
    return torch.where(opening, torch.sqrt((u - tip_u).square() + (v - tip_v).square()), arcs)


SHAPE_FUNCTIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    circle,
    square,
    triangle,
    star,
    heart,
    cross,
    ring,
    crescent,
)
"""In the order of ``vocab.SHAPES``."""


def signed_distance(shape: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Evaluate each pixel's own shape.

    Args:
        shape: Index into ``vocab.SHAPES``, int64, any shape.
        u: Local coordinates, float32 of the same shape.
        v: Local coordinates, float32 of the same shape.
    """
    distance = SHAPE_FUNCTIONS[0](u, v)
    for index, function in enumerate(SHAPE_FUNCTIONS[1:], start=1):
        distance = torch.where(shape == index, function(u, v), distance)
    return distance
