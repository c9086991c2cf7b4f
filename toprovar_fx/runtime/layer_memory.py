"""What layers left behind in one generation: maps that rank tokens, and updates for those not computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..options import Options
from .graph_updates import GraphUpdates
from .maps import Blocks
from .ranking import Ranking

if TYPE_CHECKING:
    from .generation import Generation


class LayerMemory:
    """Maps and updates of all layers, at the tokens of the scale that runs.

    Args:
        options: the settings.
        generation: the scale that runs.

    Attributes:
        maps: the latest entropies of every layer.
        updates: the latest update of every layer that ran whole.
    """

    def __init__(self, options: Options, generation: Generation) -> None:
        self._options, self._generation = options, generation
        self.maps = Ranking(options, generation.schedule)
        self.updates = GraphUpdates(generation.schedule)

    def keep_rows(self, rows: int) -> None:
        """Forget all but the first `rows` batch rows."""
        self.maps.keep_rows(rows)
        self.updates.keep_rows(rows)

    def end_scale(self) -> None:
        """Free what was resized for the scale that ran."""
        self.maps.end_scale()
        self.updates.end_scale()

    def ranking(self, layer: int) -> Tensor | None:
        """The entropy map [R, L] in nats that ranks the tokens of `layer`, as measured so far, or None."""
        return self.maps.map_for(layer, self._generation.scale)

    def map_of(self, layer: int) -> Tensor | None:
        """The latest entropy map of `layer`, [R, L] in nats, or None."""
        return self.maps.map_of(layer, self._generation.scale)

    def restored(self, layer: int) -> Tensor | None:
        """The update [R, L, C] that pruned tokens of `layer` get, or None for nothing."""
        if self._options.restore != "cache" or layer not in self.updates:
            return None
        return self.updates.at(layer, self._generation.scale)

    def map_blocks(self, layers: Sequence[int] | None = None) -> Blocks | None:
        """What holds the latest maps of layers, by default all, at the tokens of the scales that they are of.

        See `ScaleMaps.blocks`; None where a layer left its map alone, or none.
        """
        return self.maps.blocks(self.maps.layers if layers is None else layers)

    def update_blocks(self, layers: Sequence[int] | None = None) -> Blocks | None:
        """As `map_blocks`, of the updates that pruned tokens of the layers get; None if they get none."""
        if self._options.restore != "cache":
            return None
        return self.updates.blocks(self.updates.layers if layers is None else layers)
