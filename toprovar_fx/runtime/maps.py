"""What one scale leaves for later ones: entropy maps that rank tokens, and updates for those not computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..criteria.restore import restore_delta, upsample_map
from ..schedules import Schedule

# One resize of all layers launches fewer kernels, and takes their memory twice.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Block:
    """Values [N, R, L, ...] of N layers at one scale's tokens; its parts are those of every layer."""

    scale: int
    values: Tensor
    parts: Mapping[int, Tensor]

    @classmethod
    def of(cls, scale: int, layers: Sequence[int], values: Tensor) -> Block:
        """Of N layers."""
        return cls(scale, values, dict(zip(layers, values.unbind(), strict=True)))

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers."""
        return tuple(self.parts)


# Blocks, each with layers of it.
Blocks = tuple[tuple[Block, tuple[int, ...]], ...]


class _Left(NamedTuple):
    """Values [R, L, ...] of one scale's tokens, and the block that they are a part of."""

    scale: int
    values: Tensor
    block: Block | None = None


class ScaleMaps:
    """The latest values of every layer, resized to the scale that runs; each is resized once.

    Args:
        schedule: the scales.
        updates: the values are updates [R, L, C] (area-interpolated); else maps [R, L] (bilinear).
    """

    def __init__(self, schedule: Schedule, *, updates: bool) -> None:
        self._schedule, self._updates = schedule, updates
        self._known: dict[int, _Left] = {}
        self._resized: dict[int, _Left] = {}

    def __contains__(self, layer: int) -> bool:
        return layer in self._known

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that left something."""
        return tuple(self._known)

    def put(self, scale: int, values: Mapping[int, Tensor]) -> None:
        """Take the values of layers at the scale that runs."""
        self._known.update({layer: _Left(scale, each) for layer, each in values.items()})
        for layer in values if self._resized else ():
            self._resized.pop(layer, None)

    def put_together(self, block: Block) -> None:
        """As `put`, of the layers of a block."""
        self.put(block.scale, block.parts)
        self._known.update({layer: _Left(block.scale, part, block) for layer, part in block.parts.items()})

    def blocks(self, layers: Sequence[int]) -> Blocks | None:
        """The blocks that hold the latest values of these layers, each with its own of them; newest first.

        Whoever asks for fewer layers then most often finds the same blocks in the same places. None where the
        values of a layer are in no block.
        """
        lefts = map(self._known.get, layers)
        holding = [left.block for left in lefts if left is not None and left.block is not None]
        if len(holding) < len(layers):
            return None
        if len(set(holding)) == 1:  # mostly
            return ((holding[0], tuple(layers)),)
        found: dict[Block, list[int]] = {}
        for block, layer in zip(holding, layers, strict=True):
            found.setdefault(block, []).append(layer)
        by_age = sorted(found.items(), key=lambda each: -each[0].scale)
        return tuple((block, tuple(own)) for block, own in by_age)

    def at(self, layer: int, scale: int) -> Tensor:
        """The values of a layer at the tokens of `scale`.

        Raises:
            KeyError: the layer left nothing.
        """
        found = self._known[layer]
        if found.scale == scale:
            return found.values
        resized = self._resized.get(layer)
        if resized is None or resized.scale != scale:
            self._resize(layer, found, scale)
        return self._resized[layer].values

    def _resize(self, layer: int, found: _Left, scale: int) -> None:
        """Resize the values of a layer; those of all layers as one where they are small."""
        sides = self._schedule.sides[found.scale], self._schedule.sides[scale]
        alike = [each for each, left in self._known.items() if _match(left, found)]
        growth = self._schedule.tokens[scale] / self._schedule.tokens[found.scale]
        if len(alike) * found.values.nbytes * max(1, growth) > _MOST_BYTES:
            alike = [layer]
        values = [self._known[each].values for each in alike]
        resize = restore_delta if self._updates else upsample_map
        made = resize(values[0] if len(alike) == 1 else torch.cat(values), *sides)
        parts = made.split(len(found.values))
        self._resized.update(zip(alike, (_Left(scale, part) for part in parts), strict=True))

    def keep_rows(self, rows: int) -> None:
        """Forget all but the first `rows` batch rows."""
        self._known = {layer: _Left(left.scale, left.values[:rows]) for layer, left in self._known.items()}
        self._resized = {}

    def end_scale(self) -> None:
        """Free what was resized for the scale that ran."""
        self._resized = {}


def _match(one: _Left, other: _Left) -> bool:
    mine, theirs = one.values, other.values
    same = mine.shape, mine.dtype, mine.device
    return one.scale == other.scale and same == (theirs.shape, theirs.dtype, theirs.device)
