"""Entropy maps that rank tokens, and which layer's map ranks which layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..options import Options
from ..schedules import Schedule
from .maps import ScaleMaps
from .taps import ranking_layer


class Ranking(ScaleMaps):
    """The latest entropy map of every layer.

    Args:
        options: the settings.
        schedule: the scales.

    Attributes:
        latest: the layer that was the last to measure at the scale that runs, or None.
    """

    def __init__(self, options: Options, schedule: Schedule) -> None:
        super().__init__(schedule, updates=False)
        self._options = options
        self._layers = 0
        self.latest: int | None = None

    def adopt(self, layers: int) -> None:
        """Learn the number of layers of the model."""
        self._layers = layers

    def put(self, scale: int, values: Mapping[int, Tensor]) -> None:
        """Take the maps [R, L] of layers at the scale that runs, in the order in which they were measured."""
        super().put(scale, values)
        self.latest = [self.latest, *values][-1]

    def ranked_by(self, layer: int, latest: int | None) -> int:
        """The layer whose map ranks the tokens of `layer`; `latest` was the last measured at this scale."""
        if self._options.ranking_depth is not None:
            return ranking_layer(self._options, self._layers)
        if self._options.entropy_source == "previous_scale" or latest is None:
            return layer
        return latest

    def map_of(self, layer: int, scale: int) -> Tensor | None:
        """The latest map of `layer` at the tokens of `scale`, [R, L], or None."""
        return self.at(layer, scale) if layer in self else None

    def map_for(self, layer: int, scale: int) -> Tensor | None:
        """The map [R, L] that ranks the tokens of `layer` at `scale`, as measured so far, or None."""
        return self.map_of(self.ranked_by(layer, self.latest), scale)

    def end_scale(self) -> None:
        """Free what was resized for the scale that ran."""
        super().end_scale()
        self.latest = None
