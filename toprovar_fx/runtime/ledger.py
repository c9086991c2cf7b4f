"""What one generation ran, written down as it happens and evaluated only when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from ..analysis.reasons import Fallback

if TYPE_CHECKING:
    from ..cost.expressions import Sizes
    from ..lowering.joined_layers import SelectedKeep
    from ..lowering.region import Region
    from .dense_calls import DenseCalls


@dataclass(frozen=True)
class Run:
    """One layer at one scale.

    Attributes:
        scale, layer: where.
        arm: "dense", "tapped", "pruned" or "skipped".
        kept, tokens: K and L.
        region, sizes: what ran and at which sizes; None for a skipped layer.
        dense, dense_sizes: what the untouched model would have run.
    """

    scale: int
    layer: int
    arm: str
    kept: int
    tokens: int
    region: Region | None
    sizes: Sizes | None
    dense: Region
    dense_sizes: Sizes


@dataclass
class Ledger:
    """Records of one controller.

    Attributes:
        runs: layers that ran, in order.
        rho: low-entropy ratio by scale, mean over images.
        depth: D or None.
        detail: R by layer.
        maps: by (scale, layer) where they were measured, the entropies [R, L] in nats.
        scopes: what R was measured of: layers, and sigma1 / sigma2 of each and every row, [N, R].
        chosen: by (scale, layer) that was pruned, the keep set [R, K], where the host knew it.
        selected: the keep sets that a step selected: its scale, which they are, and the selections.
        fallbacks: what stayed dense.
        deviations: by (scale, layer) that was pruned, the relative deviation in its permutation check.
        prunable: whether any graph of the model could be pruned.
        answers: of the gates as they gave them: gate, layer, whether it fired.
        model: what tells the identity of the model's weights; None before its step ran.
        conditional_scales: guided scales that were run without their unconditional rows.
        dense_calls: of the graphs that stay dense, counted.
        cached_rows: with a cache policy, by (scale, layer), the rows in the cache after the scale, and those
            of them that stay.
        notes: by scale, why it ran otherwise than `unit` and `cuda_graphs` ask; nothing is dense for it.
    """

    runs: list[Run] = field(default_factory=list)
    rho: dict[int, float] = field(default_factory=dict)
    depth: int | None = None
    detail: dict[int, float] = field(default_factory=dict)
    maps: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    scopes: list[tuple[tuple[int, ...], Tensor]] = field(default_factory=list)
    chosen: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    selected: list[tuple[int, Sequence[SelectedKeep], Sequence[Tensor]]] = field(default_factory=list)
    fallbacks: list[Fallback] = field(default_factory=list)
    deviations: dict[tuple[int, int], float] = field(default_factory=dict)
    prunable: bool = False
    answers: list[tuple[str, int, bool]] = field(default_factory=list)
    model: Callable[[], str] | None = None
    conditional_scales: set[int] = field(default_factory=set)
    dense_calls: list[DenseCalls] = field(default_factory=list)
    cached_rows: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    notes: dict[int, list[Fallback]] = field(default_factory=dict)

    _outside: list[tuple[int, Region, Sizes]] = field(default_factory=list)

    @property
    def other(self) -> list[tuple[int, Region, Sizes]]:
        """Calls of the parts outside the blocks and of graphs that stay dense, as (scale, region, sizes)."""
        return [*(call for calls in self.dense_calls for call in calls.each()), *self._outside]

    def ran_outside(self, scale: int, region: Region, sizes: Sizes) -> None:
        """Write down a call of a part outside the blocks."""
        self._outside.append((scale, region, sizes))

    def answer(self, gate: str, layer: int, yes: bool) -> None:
        """Write down what a gate decided."""
        self.answers.append((gate, layer, yes))

    @property
    def keep_sets(self) -> dict[tuple[int, int], Tensor]:
        """By (scale, layer), indices [R, K] of the pruned layers."""
        found = dict(self.chosen)
        for scale, keeps, values in self.selected:
            found.update({(scale, keep.layer): keep.among(values) for keep in keeps})
        return found

    @property
    def gates(self) -> dict[tuple[str, int], tuple[int, int]]:
        """By (gate, layer), how often it was asked and how often its answer was yes."""
        found: dict[tuple[str, int], tuple[int, int]] = {}
        for gate, layer, yes in self.answers:
            asked, fired = found.get((gate, layer), (0, 0))
            found[gate, layer] = asked + 1, fired + yes
        return found

    @property
    def sigma_ratios(self) -> dict[int, Tensor]:
        """``sigma1 / sigma2`` of every row [R] by layer, where R was measured."""
        return {layer: of for layers, ratios in self.scopes for layer, of in zip(layers, ratios, strict=True)}

    def add_fallbacks(self, found: Iterable[Fallback]) -> None:
        """Write down what stayed dense, unless it is known."""
        self.fallbacks.extend(each for each in found if each not in self.fallbacks)

    def note(self, scale: int, why: Fallback) -> None:
        """Write down that a scale ran otherwise than was asked for."""
        known = self.notes.setdefault(scale, [])
        if why not in known:
            known.append(why)

    def rows_factor(self, scale: int) -> int:
        """How many times the rows that ran the dense model would have run."""
        return 2 if scale in self.conditional_scales else 1

    def reasons(self) -> str:
        """The distinct reasons for staying dense, in words."""
        return "; ".join(sorted({str(fallback) for fallback in self.fallbacks}))
