"""What a joined step is made of and what comes out: layers in their variants, added inputs, results.

Decisions are written down in these terms; how a graph is built of them is `joined_step.py`'s matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor, fx

from .region import Region


@dataclass(frozen=True)
class JoinedLayer:
    """How one layer runs in a joined step.

    Attributes:
        region: the variant of its block, inputs as `Arm` says; None for a skipped layer.
        plain: whether it is a block that the analysis did not understand, which may return what it was given.
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
    plain: bool = False
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
    """How tokens are selected.

    Attributes:
        rule: for guidance rows.
        keep_low: whether low scores are kept.
        frequency: scores the tokens of layers that rank them by frequency; None where none does.
    """

    rule: str
    keep_low: bool
    frequency: Region | None = None


class SelectedKeep(NamedTuple):
    """Where a keep set is: its layer, which of the selections, and its place there if it holds several."""

    layer: int
    selection: int
    place: int | None

    def among(self, selections: Sequence[Tensor]) -> Tensor:
        """The keep set [R, K]."""
        found = selections[self.selection]
        return found if self.place is None else found[self.place]


@dataclass(frozen=True)
class JoinedStep:
    """A joined graph.

    Attributes:
        graph: inputs are the traced step's, then one per entry of `extras`; the output is one tuple: what the
            traced step returns, then entropy maps [R, L] of `maps`, updates [R, L, C] of `updates`, and the
            keep sets that it selected, [R, K] or of N layers [N, R, K], in this order.
        extras: the inputs that were added; last the updates, behind them the maps.
        results: number of values that the traced step returns.
        maps, updates: layers, in the order of the outputs.
        keeps: where the keep sets of the layers are whose tokens the graph selects.
    """

    graph: fx.GraphModule
    extras: tuple[Extra, ...]
    results: int
    maps: tuple[int, ...]
    updates: tuple[int, ...]
    keeps: tuple[SelectedKeep, ...]

    @cached_property
    def takes(self) -> Mapping[str, tuple[int, ...]]:
        """Groups or layers of the added inputs, by kind, in order."""
        found: dict[str, tuple[int, ...]] = defaultdict(tuple)
        for extra in self.extras:
            found[extra.kind] += (extra.at,)
        return found


def ranked_from_before(layers: Sequence[JoinedLayer]) -> dict[int, tuple[int, ...]]:
    """By group of K, the layers whose maps of earlier scales rank the tokens of some layer."""
    found: dict[int, dict[int, None]] = {}
    measured: set[int] = set()
    for at, layer in enumerate(layers):
        if layer.count is not None and layer.ranked_by is not None and layer.ranked_by not in measured:
            found.setdefault(layer.count, {})[layer.ranked_by] = None
        if layer.entropy:
            measured.add(at)
    return {count: tuple(rankings) for count, rankings in found.items()}
