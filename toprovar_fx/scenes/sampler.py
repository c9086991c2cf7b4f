"""Random scenes, a whole batch at a time and without Python loops over images."""

from __future__ import annotations

import torch
from torch import Tensor

from . import scene as sc
from .hashing import image_keys, uniform
from .layout import place
from .scene import MAX_OBJECTS, SceneBatch
from .vocab import BACKGROUNDS, COLOURS, SHAPES, TEXTURES

HELD_OUT = (
    ("red", "star"),
    ("blue", "heart"),
    ("green", "ring"),
    ("yellow", "cross"),
    ("purple", "triangle"),
    ("white", "crescent"),
)
"""(colour, shape) pairs that never occur in training scenes. No colour and no shape occurs twice."""

_KINDS = (0.20, 0.65, 0.90)  # cumulative: 20% single, 45% two objects, 25% counts, 10% mixed
_SAME_COLOUR = 0.12  # of scenes with different objects: the second has the first one's colour
_PLAIN = 0.4


def _held_colours(device: torch.device) -> Tensor:
    """int64 [8]: the colour in which a shape is held out, or -1."""
    table = [-1] * len(SHAPES)
    for colour, shape in HELD_OUT:
        table[SHAPES.index(shape)] = COLOURS.index(colour)
    return torch.tensor(table, device=device)


def _bring_to_slot(order: Tensor, slot: Tensor, value: Tensor) -> Tensor:
    """Swap two entries of every permutation ``order [B, 8]`` so that ``order[b, slot[b]] == value[b]``."""
    at_value = order == value[:, None]
    at_slot = torch.arange(order.shape[1], device=order.device) == slot[:, None]
    displaced = order.gather(1, slot[:, None])
    return torch.where(at_slot, value[:, None], torch.where(at_value, displaced, order))


def _appearance(keys: Tensor, n: Tensor, kind: Tensor, held_out: bool) -> tuple[Tensor, Tensor]:
    """Draw shapes and colours, int64 [B, 4] each; different objects of one image have different shapes."""
    shapes = uniform(keys, 3, len(SHAPES)).argsort(dim=1)
    colours = uniform(keys, 4, len(COLOURS)).argsort(dim=1)
    draw = uniform(keys, 5, 3)
    slot = torch.arange(MAX_OBJECTS, device=keys.device)
    chosen = torch.zeros_like(colours[:, :MAX_OBJECTS], dtype=torch.bool)
    if held_out:
        pairs = torch.tensor([(COLOURS.index(c), SHAPES.index(s)) for c, s in HELD_OUT], device=keys.device)
        pair = pairs[(draw[:, 0] * len(HELD_OUT)).long()]
        which = torch.where(kind == sc.COUNT, 0, (draw[:, 1] * n).long())
        shapes = _bring_to_slot(shapes, which, pair[:, 1])
        colours = _bring_to_slot(colours, which, pair[:, 0])
        chosen = slot == which[:, None]
    shape, colour = shapes[:, :MAX_OBJECTS], colours[:, :MAX_OBJECTS]
    copied = (draw[:, 2:] < _SAME_COLOUR) & (slot == 1) & ~chosen
    colour = torch.where(copied, colour[:, :1], colour)
    # Each shape is held out in one colour at most, so half a turn of the colour list gives an allowed pair.
    forbidden = (_held_colours(keys.device)[shape] == colour) & ~chosen
    colour = torch.where(forbidden, (colour + len(COLOURS) // 2) % len(COLOURS), colour)
    equal = (kind == sc.COUNT)[:, None]
    return torch.where(equal, shape[:, :1], shape), torch.where(equal, colour[:, :1], colour)


def compose(
    n: Tensor, kind: Tensor, layout: Tensor, shape: Tensor, colour: Tensor, keys: Tensor
) -> SceneBatch:
    """Complete scenes whose objects are given: draw positions, textures and backgrounds.

    Args:
        n: int64 ``[B]``; this and the next four are fields of `SceneBatch`.
        kind: int64 ``[B]``.
        layout: int64 ``[B]``; it must have at least ``n`` slots.
        shape: int64 ``[B, 4]``.
        colour: int64 ``[B, 4]``.
        keys: int64 ``[B]`` of `hashing.image_keys`.
    """
    cx, cy, radius, angle = place(n, layout, keys)
    draw = uniform(keys, 6, MAX_OBJECTS)
    patterned = 1 + ((draw - _PLAIN) / (1 - _PLAIN) * (len(TEXTURES) - 1)).long()
    texture = torch.where(draw < _PLAIN, 0, patterned.clamp(1, len(TEXTURES) - 1))
    texture = torch.where((kind == sc.COUNT)[:, None], texture[:, :1], texture)
    background = (uniform(keys, 7, 1)[:, 0] * len(BACKGROUNDS)).long()
    return SceneBatch(n, kind, layout, shape, colour, texture, cx, cy, radius, angle, background, keys)


def sample_scenes(batch: int, *, device: torch.device | str, seed: int, held_out: bool = False) -> SceneBatch:
    """Draw ``batch`` scenes; the same seed gives the same scenes on every device.

    Args:
        batch: Number of images B.
        device: Where the tensors live.
        seed: 0 to 2**63 - 1. Scene ``i`` depends on ``seed`` and ``i`` alone, not on ``batch``.
        held_out: False: no object is a `HELD_OUT` pair. True: at least one object of every scene is.

    Raises:
        SeedError: ``seed`` is out of range.
    """
    return scenes_from_keys(image_keys(seed, batch, device), held_out=held_out)


def scenes_from_keys(keys: Tensor, *, held_out: bool = False) -> SceneBatch:
    """Draw one scene per key of `hashing.image_keys`, int64 ``[B]``.

    Unlike `sample_scenes` it has no Python number that changes between batches, so that one compiled graph
    draws, renders and describes every batch.
    """
    draw = uniform(keys, 1, 3)
    kind = torch.bucketize(draw[:, 0].contiguous(), torch.tensor(_KINDS, device=keys.device), right=True)
    n_count, n_mixed = 2 + (draw[:, 1] * 3).long(), 3 + (draw[:, 1] * 2).long()
    n = torch.where(kind == sc.COUNT, n_count, torch.where(kind == sc.MIXED, n_mixed, kind + 1))
    # Two layouts for two and three objects, one for one and four.
    first = torch.tensor((0, sc.CENTRE, sc.HORIZONTAL, sc.ROW, sc.GRID), device=keys.device)[n]
    second = torch.tensor((0, sc.CENTRE, sc.VERTICAL, sc.TRIANGLE, sc.GRID), device=keys.device)[n]
    layout = torch.where(draw[:, 2] < 0.55, first, second)
    shape, colour = _appearance(keys, n, kind, held_out)
    return compose(n, kind, layout, shape, colour, keys)
