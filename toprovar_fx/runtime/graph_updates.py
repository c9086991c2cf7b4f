"""Updates of layers that may or may not have run whole, which only the device knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..schedules import Schedule
from .maps import Blocks, ScaleMaps


class GraphUpdates(ScaleMaps):
    """As `ScaleMaps` of updates; one that was put with a flag counts where the flag holds.

    Args:
        schedule: the scales.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule, updates=True)
        self._perhaps: dict[int, list[tuple[ScaleMaps, Tensor]]] = {}

    def put(self, scale: int, values: Mapping[int, Tensor]) -> None:
        """Take the updates of layers that ran whole."""
        super().put(scale, values)
        for layer in values:
            self._perhaps.pop(layer, None)

    def put_if(self, whole: Tensor, layer: int, scale: int, values: Tensor) -> None:
        """Take the update of a layer that ran whole if `whole`, bool [], holds."""
        later = ScaleMaps(self._schedule, updates=True)
        later.put(scale, {layer: values})
        self._perhaps.setdefault(layer, []).append((later, whole))

    def blocks(self, layers: Sequence[int]) -> Blocks | None:
        """As of `ScaleMaps`; None where only the device knows which update of a layer counts."""
        return None if any(layer in self._perhaps for layer in layers) else super().blocks(layers)

    def at(self, layer: int, scale: int) -> Tensor:
        """The latest update that counts, at the tokens of `scale`."""
        found = super().at(layer, scale)
        for later, whole in self._perhaps.get(layer, ()):
            found = torch.where(whole, later.at(layer, scale), found)
        return found
