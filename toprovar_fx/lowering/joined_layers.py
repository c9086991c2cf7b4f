"""What a joined step is made of and what comes out: layers in their variants, added inputs, results.

Decisions are written down in these terms; how a graph is built of them is `joined_step.py`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from .region import Region


@dataclass(frozen=True)
class JoinedLayer:
    """How one layer runs in a joined step.

    Attributes:
        region: the variant of its block, inputs as `Arm` says; None for a skipped layer and a plain one.
        plain: the graph of a block that the analysis did not understand.
        select: positions among the block's inputs that the graph takes.
        offset: group of the layer's first cache row, or None without a cache.
        count: group of the layer's K, or None where it keeps all or nothing.
        ranked_by: layer whose entropy map selects the K tokens inside the graph; None where the keep set is
            an input, or nothing is kept.
        by_frequency: whether the graph selects them by their distance to the mean of what the layer gets.
        base: layer whose map fills in for tokens that were not computed, where entropies are measured.
        entropy: whether the variant also returns entropies.
        restored: whether tokens that are not computed get an update that is an input.
        update: whether the layer's own update is an output.
    """

    region: Region | None = None
    plain: fx.GraphModule | None = None
    select: tuple[int, ...] = ()
    offset: int | None = None
    count: int | None = None
    ranked_by: int | None = None
    by_frequency: bool = False
    base: int | None = None
    entropy: bool = False
    restored: bool = False
    update: bool = False

    @property
    def keep_given(self) -> bool:
        """Whether the keep set is an input."""
        return self.count is not None and self.ranked_by is None and not self.by_frequency


class Extra(NamedTuple):
    """An input of a joined step beyond those of the traced one: its kind, and a group or layer."""

    kind: str
    at: int


@dataclass(frozen=True)
class Selection:
    """How tokens are selected from entropies: the rule for guidance rows, and the sign."""

    rule: str
    keep_low: bool


@dataclass(frozen=True)
class JoinedStep:
    """A joined graph.

    Attributes:
        graph: inputs are the traced step's, then one per entry of `extras`; the output is one tuple: what the
            traced step returns, then entropy maps [R, L] of `maps`, updates [R, L, C] of `updates`, and the
            keep sets [R, K] that it selected, in this order.
        extras: the inputs that were added.
        results: number of values that the traced step returns.
        maps, updates: layers, in the order of the outputs.
        keeps: (layer, which of the keep sets) of the layers whose tokens the graph selects.
    """

    graph: fx.GraphModule
    extras: tuple[Extra, ...]
    results: int
    maps: tuple[int, ...]
    updates: tuple[int, ...]
    keeps: tuple[tuple[int, int], ...]
