"""The renderer: a fixed number of elementwise passes over the whole batch, antialiased, safe to compile."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .backgrounds import background
from .palette import ACCENT_COLOURS, OBJECT_COLOURS
from .scene import IMAGE_SIZE, MAX_OBJECTS, SceneBatch
from .shapes import signed_distance
from .vocab import TEXTURES

_STRIPED, _DOTTED, _CHECKERED, _GLOSSY = map(TEXTURES.index, ("striped", "dotted", "checkered", "glossy"))
_STRIPE, _DOT, _CHECK = 15.0, 14.0, 12.0  # periods, and the side of a checker field, in pixels


def _nearest_object(scenes: SceneBatch, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give every pixel to the nearest object: objects never overlap, so no pixel needs a second one.

    Returns:
        The object's slot, int64 ``[B, 256, 256]``, and the offset from its centre in radii along x and along
        y, float32 of that shape.
    """
    slot = dx = dy = best = None
    for index in range(MAX_OBJECTS):
        radius = scenes.radius[:, index, None, None]
        to_x = (x - scenes.cx[:, index, None, None]) / radius
        to_y = (y - scenes.cy[:, index, None, None]) / radius
        squared = to_x * to_x + to_y * to_y
        if slot is None or dx is None or dy is None or best is None:
            slot, dx, dy, best = torch.zeros_like(squared, dtype=torch.int64), to_x, to_y, squared
            continue
        closer = squared < best
        slot = torch.where(closer, index, slot)
        dx, dy, best = (torch.where(closer, a, b) for a, b in ((to_x, dx), (to_y, dy), (squared, best)))
    assert slot is not None and dx is not None and dy is not None
    return slot, dx, dy


def _pattern(texture: Tensor, u: Tensor, v: Tensor, slope: Tensor) -> Tensor:
    """Mix between an object's two tones, in [0, 1].

    Args:
        texture: Index into ``vocab.TEXTURES``, int64 ``[B, 256, 256]``.
        u: Rotated offsets from the object's centre in pixels, float32 of that shape.
        v: The same.
        slope: Position along the light's direction, about -1 to 1 within the object.
    """
    diagonal = (u + v) / (_STRIPE * math.sqrt(2))
    stripes = (((diagonal - diagonal.floor()) - 0.5).abs() - 0.25) * _STRIPE + 0.5
    dot_u, dot_v = u / _DOT, v / _DOT
    dot_u, dot_v = dot_u - dot_u.round(), dot_v - dot_v.round()
    dots = 4.7 - _DOT * torch.sqrt(dot_u * dot_u + dot_v * dot_v)
    checks = 0.5 + 5 * torch.sin(u * (math.pi / _CHECK)) * torch.sin(v * (math.pi / _CHECK))
    mixture = torch.where(texture == _STRIPED, stripes, torch.zeros_like(u))
    mixture = torch.where(texture == _DOTTED, dots, mixture)
    mixture = torch.where(texture == _CHECKERED, checks, mixture)
    mixture = torch.where(texture == _GLOSSY, 0.5 + 0.6 * slope, mixture)
    return mixture.clamp(0, 1)


def render(scenes: SceneBatch) -> Tensor:
    """Draw scenes.

    Args:
        scenes: B scenes, on any device.

    Returns:
        float32 ``[B, 3, 256, 256]``, sRGB scaled to ``[-1, 1]``, contiguous.
    """
    device = scenes.n.device
    axis = torch.arange(IMAGE_SIZE, device=device, dtype=torch.float32) + 0.5
    x, y = axis[None, None, :], axis[None, :, None]
    slot, dx, dy = _nearest_object(scenes, x, y)

    def per_pixel(field: Tensor) -> Tensor:
        return field.gather(1, slot.flatten(1)).view(slot.shape)

    radius = per_pixel(scenes.radius)
    cosine, sine = per_pixel(scenes.angle.cos()), per_pixel(scenes.angle.sin())
    u, v = cosine * dx + sine * dy, cosine * dy - sine * dx
    distance = signed_distance(per_pixel(scenes.shape), u, v) * radius
    slope = (dx + dy) * 0.7  # light falls from the upper left

    texture = per_pixel(scenes.texture)
    mixture = _pattern(texture, u * radius, v * radius, slope)[..., None]
    colour = per_pixel(scenes.colour)
    tone = torch.tensor(OBJECT_COLOURS, device=device)[colour]
    tone = tone + (torch.tensor(ACCENT_COLOURS, device=device)[colour] - tone) * mixture
    rim = 1 - 0.20 * (distance.clamp_max(0) / 2.5).exp()
    shading = (1.03 - 0.07 * slope.clamp(-1, 1)) * rim
    spot = (dx + 0.36).square() + (dy + 0.36).square()
    highlight = ((texture == _GLOSSY) * (-spot / 0.07).exp() * 0.38)[..., None]
    body = (tone * shading[..., None]).clamp(0, 1)
    body = body + (1 - body) * highlight

    shadow = (0.42 + 0.22 * slope.clamp(-1, 1)) * (-distance.clamp_min(0) / 8).exp()
    ground = background(scenes.background, scenes.noise_key, x, y) * (1 - shadow[..., None])
    coverage = (0.5 - distance).clamp(0, 1)[..., None]
    image = ground + coverage * (body - ground)
    return (image * 2 - 1).permute(0, 3, 1, 2).contiguous()
