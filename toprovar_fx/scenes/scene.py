"""`SceneBatch`: the ground truth of a batch of scenes, as tensors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_OBJECTS = 4
IMAGE_SIZE = 256

SINGLE, TWO, COUNT, MIXED = range(4)
"""Values of `SceneBatch.kind`: one object, two different ones, 2 to 4 equal ones, 3 or 4 different ones."""

CENTRE, HORIZONTAL, VERTICAL, ROW, TRIANGLE, GRID = range(6)
"""Values of `SceneBatch.layout`. Objects stand in reading order: left to right, top to bottom."""


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of B images. Lengths are pixels, x to the right, y downwards, angles radians, clockwise.

    Attributes:
        n: Objects per image, int64 ``[B]``, 1 to 4. Slots from ``n`` on lie far outside the image.
        kind: int64 ``[B]``, one of SINGLE, TWO, COUNT, MIXED.
        layout: int64 ``[B]``, one of CENTRE, HORIZONTAL, VERTICAL, ROW, TRIANGLE, GRID.
        shape: Index into ``vocab.SHAPES``, int64 ``[B, 4]``.
        colour: Index into ``vocab.COLOURS``, int64 ``[B, 4]``.
        texture: Index into ``vocab.TEXTURES``, int64 ``[B, 4]``.
        cx: Centres, float32 ``[B, 4]``.
        cy: Centres, float32 ``[B, 4]``.
        radius: Nominal radii, float32 ``[B, 4]``; every shape stays within 1.1 of it along both axes.
        angle: Rotations, float32 ``[B, 4]``.
        background: Index into ``vocab.BACKGROUNDS``, int64 ``[B]``.
        noise_key: Key of the background's noise, int64 ``[B]``.
    """

    n: Tensor
    kind: Tensor
    layout: Tensor
    shape: Tensor
    colour: Tensor
    texture: Tensor
    cx: Tensor
    cy: Tensor
    radius: Tensor
    angle: Tensor
    background: Tensor
    noise_key: Tensor

    def __len__(self) -> int:
        """Return the number of images B."""
        return self.n.shape[0]

    def __getitem__(self, index: slice | Tensor) -> SceneBatch:
        """Return the scenes at ``index``, a slice or an index tensor."""
        return SceneBatch(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    def to(self, device: torch.device | str) -> SceneBatch:
        """Return the same scenes on ``device``."""
        return SceneBatch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    @property
    def relation(self) -> Tensor:
        """int64 ``[B]``: 0: object 0 is left of object 1; 1: above it; -1: not two different objects."""
        horizontal, vertical = self.layout == HORIZONTAL, self.layout == VERTICAL
        related = (self.kind == TWO).long()
        return related * (horizontal.long() + 2 * vertical.long()) - 1
