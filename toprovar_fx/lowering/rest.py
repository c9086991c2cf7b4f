"""Lowered graphs as modules: those that a step calls, and the parts of it outside its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..cost.expressions import Sizes
from .region import Region


class RegionCall(nn.Module):
    """A lowered graph as a module."""

    def __init__(self, region: Region) -> None:
        super().__init__()
        self.region = region

    def forward(self, *arguments: Any) -> Any:
        """Run the graph."""
        return self.region(*arguments)


class RegionModule(nn.Module):
    """A lowered graph whose calls somebody counts.

    Args:
        region: the graph.
        seen: told the region and its sizes at every call.
    """

    def __init__(self, region: Region, seen: Callable[[Region, Sizes], None]) -> None:
        super().__init__()
        self.region, self.seen = region, seen

    def forward(self, *arguments: Any) -> Any:
        """Run the graph."""
        self.seen(self.region, self.region.sizes(arguments))
        return self.region(*arguments)
