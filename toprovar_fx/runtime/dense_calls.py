"""Calls of a graph that stays dense, in one generation: what does not depend on the call is done once.

Such graphs may take some ten microseconds (one token, a modulation, a head), so that a call must not cost
more than to count it. Everything that a report says of the calls is made of the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..analysis.reasons import Fallback
from .short_caches import refuse_short_caches

if TYPE_CHECKING:
    from ..cost.expressions import Sizes
    from ..lowering.region import Region
    from .controller import Controller
    from .generation import Generation


@dataclass(slots=True)
class Tally:
    """How many calls had these sizes at this scale."""

    scale: int
    sizes: tuple[int, ...]
    calls: int = 0


class DenseCalls:
    """Calls of one dense graph, counted by scale and sizes.

    Args:
        running: the generation.
        controller: of the options that the graph was compiled with; the report is its ledger's.
        region: the graph.
        fallbacks: why it stays dense, for the report.

    Attributes:
        latest: where the latest call was counted.
    """

    def __init__(
        self, running: Generation, controller: Controller, region: Region, fallbacks: Sequence[Fallback]
    ) -> None:
        self._running, self._controller, self._region = running, controller, region
        self._fallbacks = fallbacks
        self._tallies: dict[tuple[int, tuple[int, ...]], Tally] = {}
        # The first call finds a scale that does not exist.
        self.latest = Tally(-2, ())

    def note(self, arguments: tuple[Any, ...], sizes: tuple[int, ...]) -> None:
        """Count a call; one that may be refused before it runs.

        Args:
            arguments: of the call.
            sizes: what the region's size reader read off them.

        Raises:
            GraphError: the graph would read a cache that lacks rows.
        """
        running = self._running
        if running.short_caches:
            refuse_short_caches(self._controller.caches, running.short_caches, {}, arguments)
        self.latest = self._tally_of(running.scale, sizes)
        self.latest.calls += 1

    def _tally_of(self, scale: int, sizes: tuple[int, ...]) -> Tally:
        """Where calls like this one are counted; the first tells the generation and the ledger."""
        if not self._tallies:
            self._controller.ledger.fallbacks.extend(self._fallbacks)
            self._controller.ledger.dense_calls.append(self)
        if (scale, sizes) not in self._tallies:
            self._controller.enter()
            self._tallies[scale, sizes] = Tally(scale, sizes)
        return self._tallies[scale, sizes]

    def each(self) -> list[tuple[int, Region, Sizes]]:
        """(scale, region, sizes) of every call so far."""
        return [
            (tally.scale, self._region, self._region.size_reader.named(tally.sizes))
            for tally in self._tallies.values()
            for _ in range(tally.calls)
        ]
