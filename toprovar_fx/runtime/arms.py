"""Arms: the ways in which one layer can run, each a callable graph with its own choice of inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..analysis.cache_layout import CacheLayout
from ..cost.expressions import Sizes
from ..lowering.region import Region


@dataclass(frozen=True)
class Arm:
    """A rewritten block made callable.

    Attributes:
        region: the graph; its inputs are those at `select` among the block's own, then `offset`, then extras.
        select: positions among the block's own inputs.
        start: position of the first cache row among the block's inputs, a constant in a tuple, or None.
        layout: of the caches, where a cache policy looks at the queries that the region returns last.
    """

    region: Region
    select: tuple[int, ...]
    start: int | tuple[int] | None
    layout: CacheLayout | None = field(default=None, kw_only=True)

    def begin(self, inputs: tuple[Any, ...]) -> int | None:
        """The first cache row that the traced model would write, or None without a cache."""
        if self.start is None:
            return None
        return self.start[0] if isinstance(self.start, tuple) else int(inputs[self.start])

    def arguments(self, inputs: tuple[Any, ...], offset: int | None, *extra: Tensor | int) -> tuple[Any, ...]:
        """The region's arguments."""
        own = tuple(inputs[at] for at in self.select)
        return (*own, *(() if offset is None else (offset,)), *extra)

    def caches(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """Those of the block's inputs that it writes to."""
        return [inputs[self.select[at]] for at in sorted(self.region.written)]

    def sizes(self, arguments: tuple[Any, ...]) -> Sizes:
        """Values of the size symbols at these arguments."""
        return self.region.sizes(arguments)
