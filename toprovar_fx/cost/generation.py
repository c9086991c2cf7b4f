"""The price of a generation: what every scale of a schedule costs under a plan of kept tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import sympy

from ..input_specs import IMAGES, KEPT, OFFSET
from .expressions import NOTHING, Cost, Sizes
from .roofline import Roofline

Place = tuple[int, int]


class Priced(Protocol):
    """A graph whose cost at certain sizes is known; a `Region` is one."""

    def cost(self, sizes: Sizes) -> Cost:
        """FLOPs and bytes of one call."""


@dataclass(frozen=True)
class LayerGraphs:
    """The graphs that one layer can run.

    Attributes:
        dense: all tokens.
        tapped: all tokens, with entropies; None where nobody can ask for them.
        pruned, pruned_tapped: K tokens, the second with entropies; None where there is no such graph.
        keeps_rows: whether pruned tokens still write keys and values.
    """

    dense: Priced
    tapped: Priced | None = None
    pruned: Priced | None = None
    pruned_tapped: Priced | None = None
    keeps_rows: bool = False

    def chosen(self, pruned: bool, tapped: bool) -> Priced:
        """The graph that runs."""
        if not pruned or self.pruned is None:
            return self.tapped if tapped and self.tapped is not None else self.dense
        return self.pruned_tapped if tapped and self.pruned_tapped is not None else self.pruned


@dataclass(frozen=True)
class StepGraphs:
    """The graphs of a scale step: those of each layer, and those outside the layers."""

    layers: Mapping[int, LayerGraphs]
    others: Sequence[Priced]


@dataclass(frozen=True)
class ScalePlan:
    """What the layers do at one scale.

    Attributes:
        kept: K by layer; layers that are not named keep all, 0 skips one.
        tapped: layers whose entropies are measured.
    """

    kept: Mapping[int, int]
    tapped: frozenset[int] = frozenset()


WHOLE = ScalePlan({})


def price_scales(
    step: StepGraphs,
    scales: Sequence[int],
    tokens: Sequence[int],
    sizes_at: Callable[[int], Mapping[sympy.Symbol, int]],
    plan: Callable[[int], ScalePlan],
    dropped: Mapping[int, int] | None = None,
    images: int = 1,
) -> list[Cost]:
    """Price consecutive scales; what pruning leaves out of the caches makes later scales cheaper.

    Args:
        step: the graphs.
        scales: indices, ascending.
        tokens: L of every scale of the schedule.
        sizes_at: sizes of a scale, nothing pruned.
        plan: what the layers do at a scale.
        dropped: cache rows that each layer has left out before the first of `scales`.
        images: B.
    """
    missing = dict(dropped or {})
    costs = []
    for scale in scales:
        length, sizes, decided = tokens[scale], dict(sizes_at(scale)), plan(scale)
        start = sum(tokens[:scale])
        costs.append(_sum([graph.cost(tuple(sizes.items())) for graph in step.others]))
        for layer, graphs in step.layers.items():
            count = min(decided.kept.get(layer, length), length)
            gone = missing.get(layer, 0)
            if count:
                own = {**sizes, OFFSET: start - gone, KEPT: count, IMAGES: images}
                graph = graphs.chosen(count < length, layer in decided.tapped)
                costs[-1] += graph.cost(tuple(own.items()))
            if count < length and (count == 0 or not graphs.keeps_rows):
                missing[layer] = gone + length - count
    return costs


@dataclass(frozen=True)
class GenerationPrice:
    """What a generation costs, scale by scale, as planned and dense.

    Attributes:
        scales: under the plan; scales that are not run cost nothing.
        dense: had nothing been pruned.
    """

    scales: tuple[Cost, ...]
    dense: tuple[Cost, ...]

    @property
    def total(self) -> Cost:
        """All scales under the plan."""
        return _sum(self.scales)

    @property
    def total_dense(self) -> Cost:
        """All scales dense."""
        return _sum(self.dense)

    @property
    def ratio(self) -> float:
        """Dense FLOPs over those of the plan: what `budget` asks for."""
        return self.total_dense.flops / max(self.total.flops, 1)

    def latency_ms(self, device: Roofline) -> list[float]:
        """Least time of every scale under the plan, in milliseconds."""
        return [device.latency_ms(cost) for cost in self.scales]


def _sum(costs: Sequence[Cost]) -> Cost:
    return reduce(Cost.__add__, costs, NOTHING)
