"""The report of a generation: what was pruned where, why, at what price, and what stayed dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis.reasons import Fallback
from ..cost.expressions import NOTHING, Cost, Sizes
from ..cost.generation import Priced
from ..cost.other_scales import AtOtherScales
from ..cost.scale_sizes import ScaleSizes
from ..input_specs import TOKENS
from ..lowering.region import Region
from ..schedules import Schedule
from .controller import Controller
from .generation import Generation
from .ledger import Run


@dataclass(frozen=True)
class GenerationReport:
    """What one compiled model did in one generation.

    Attributes:
        schedule: the scales.
        images: B.
        exited_at: first scale that was not run, or None.
        controller: the decisions and the ledger.
    """

    schedule: Schedule
    images: int
    exited_at: int | None
    controller: Controller

    @property
    def runs(self) -> list[Run]:
        """Layers that ran, in order."""
        return self.controller.ledger.runs

    @cached_property
    def costs(self) -> dict[int, Cost]:
        """FLOPs and bytes of the transformer for all rows, by scale, as run."""
        calls = [(run.scale, run.region, run.sizes) for run in self.runs] + self.controller.ledger.other
        found = dict.fromkeys(sorted({scale for scale, _, _ in calls}), NOTHING)
        for scale, region, sizes in calls:
            if region is not None and sizes is not None:
                found[scale] += region.cost(sizes)
        return found

    @property
    def flops(self) -> int:
        """Floating-point operations of the transformer for all rows, as run."""
        return sum(cost.flops for cost in self.costs.values())

    @cached_property
    def flops_dense(self) -> int:
        """The same had nothing been pruned, the scales that were not run included."""
        other = self.controller.ledger.other
        calls = [(run.scale, run.dense, run.dense_sizes) for run in self.runs] + other
        factor = self.controller.ledger.rows_factor
        ran = sum(factor(scale) * region.flops(sizes) for scale, region, sizes in calls)
        if self.exited_at is None:
            return ran
        last = max((run.scale for run in self.runs), default=-1)
        pattern = [
            (self._at_other_scales(region, last), self._sizes_of(region, calls))
            for scale, region, _ in calls
            if scale == last
        ]
        missing = range(self.exited_at, len(self.schedule))
        return ran + sum(
            graph.cost(tuple({**sizes.at(scale), TOKENS: self.schedule.tokens[scale]}.items())).flops
            for scale in missing
            for graph, sizes in pattern
        )

    def _at_other_scales(self, region: Region, last: int) -> Priced:
        """A graph that ran at scale `last`, priced at any: by a law where its token count is a constant."""
        hidden = [run.dense.specs[0].shape or () for run in self.runs if run.scale == last]
        if not all(shape[1].is_Integer for shape in hidden):
            return region
        length = self.schedule.tokens[last]
        return AtOtherScales(region, length, self.schedule.ends[last] - length)

    def _sizes_of(self, region: Region, calls: Sequence[tuple[int, Region, Sizes]]) -> ScaleSizes:
        """Sizes of a dense graph at any scale, told from its calls."""
        hidden = [run.dense.specs[0].shape or () for run in self.runs]
        rows, lengths = {shape[0] for shape in hidden}, {shape[1] for shape in hidden}
        observed = [(scale, dict(sizes)) for scale, called, sizes in calls if called is region]
        return ScaleSizes(self.schedule, observed, lengths, rows)

    @property
    def kept(self) -> list[tuple[int, int, int, int]]:
        """Per layer run: (scale, layer, K, L)."""
        return [(run.scale, run.layer, run.kept, run.tokens) for run in self.runs]

    @cached_property
    def keep_maps(self) -> dict[int, NDArray[np.float32]]:
        """Per pruned scale: the share of layers that computed each token, [B, h, w] (conditional rows)."""
        maps: dict[int, NDArray[np.float32]] = {}
        keeps = self.controller.ledger.keep_sets
        for scale in sorted({run.scale for run in self.runs if run.kept < run.tokens}):
            layers = [run for run in self.runs if run.scale == scale]
            total = np.zeros((self.images, self.schedule.tokens[scale]), np.float32)
            for run in layers:
                keep = keeps.get((scale, run.layer))
                if keep is not None:
                    for image in range(self.images):
                        total[image, keep[image].cpu().numpy()] += 1
                elif run.kept == run.tokens:
                    total += 1
            total /= len(layers)
            maps[scale] = total.reshape(self.images, *self.schedule.sides[scale])
        return maps

    @property
    def cached_rows(self) -> dict[tuple[int, int], tuple[int, int]]:
        """With a cache policy, by (scale, layer): rows in the cache after the scale, and those that stay."""
        return dict(self.controller.ledger.cached_rows)

    @property
    def depth(self) -> int | None:
        """The scale depth D, or None if it was not reached or not asked for."""
        return self.controller.depth

    @property
    def roles(self) -> dict[int, float]:
        """Layer scope R by layer: 0 global, 1 detail; empty if it was not measured."""
        return dict(self.controller.ledger.detail)

    @property
    def entropies(self) -> dict[tuple[int, int], float]:
        """Mean attention entropy in nats by (scale, layer), where the run had to measure it."""
        return {place: float(nats.mean()) for place, nats in self.controller.ledger.maps.items()}

    @property
    def fallbacks(self) -> list[Fallback]:
        """What stayed dense, and why."""
        return list(dict.fromkeys(self.controller.ledger.fallbacks))

    def _noted(self) -> dict[Fallback, list[int]]:
        """Why scales ran otherwise than `unit` and `cuda_graphs` ask, and which."""
        found: dict[Fallback, list[int]] = {}
        for scale, notes in self.controller.ledger.notes.items():
            for why in notes:
                found.setdefault(why, []).append(scale)
        return found

    @property
    def fire_rates(self) -> dict[str, float]:
        """Share of layer runs by arm: dense, tapped, pruned, skipped."""
        total = max(len(self.runs), 1)
        arms = ("dense", "tapped", "pruned", "skipped")
        return {arm: sum(run.arm == arm for run in self.runs) / total for arm in arms}

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values, units in the keys."""
        ledger = self.controller.ledger
        return {
            "options": self.controller.options.as_dict(),
            "depth": self.depth,
            "exited_at": self.exited_at,
            "low_entropy_ratio": {str(scale): round(rho, 4) for scale, rho in ledger.rho.items()},
            "layer_scope": {str(layer): round(value, 4) for layer, value in sorted(self.roles.items())},
            "attention_entropy_nats": [[*place, round(mean, 4)] for place, mean in self.entropies.items()],
            "flops": self.flops,
            "flops_dense": self.flops_dense,
            "bytes_fused": sum(cost.bytes_fused for cost in self.costs.values()),
            "bytes_unfused": sum(cost.bytes_unfused for cost in self.costs.values()),
            "fire_rates": self.fire_rates,
            "kept_tokens": [list(row) for row in self.kept],
            "cached_rows": [[*place, *rows] for place, rows in self.cached_rows.items()],
            "fallbacks": [str(fallback) for fallback in self.fallbacks],
            "notes": {str(why): scales for why, scales in self._noted().items()},
        }

    def table(self) -> str:
        """A text table: one row per layer, one column per scale, the share of tokens kept."""
        scales = range(len(self.schedule))
        by_place = {(run.layer, run.scale): run for run in self.runs}
        layers = sorted({run.layer for run in self.runs})
        head = ["layer    R"] + [f"{self.schedule.sides[s][0]}x{self.schedule.sides[s][1]}" for s in scales]
        lines = ["  ".join(f"{cell:>9}" for cell in head)]
        for layer in layers:
            role = self.roles.get(layer)
            cells = [f"{layer:>4} {'-' if role is None else f'{role:.2f}':>4}"]
            cells += [_cell(by_place.get((layer, scale))) for scale in scales]
            lines.append("  ".join(f"{cell:>9}" for cell in cells))
        depth = "not reached" if self.depth is None else f"scale {self.depth}"
        lines.append(f"depth D: {depth}; scales not run from: {self.exited_at}")
        share = self.flops / max(self.flops_dense, 1)
        lines.append(
            f"transformer: {self.flops / 1e9:.1f} of {self.flops_dense / 1e9:.1f} GFLOP ({share:.0%})"
        )
        if self.cached_rows:
            last = max(scale for scale, _ in self.cached_rows)
            stay = [rows for (scale, _), (_, rows) in self.cached_rows.items() if scale == last]
            lines.append(
                f"cache policy {self.controller.options.cache_policy}: {sum(stay) / len(stay):.0f} of "
                f"{self.schedule.ends[last]} rows per layer stay after scale {last}"
            )
        if self.controller.options.budget is not None:
            lines.append(f"budget: {self.controller.options.budget:g}x asked, {1 / share:.3g}x reached")
        lines += [f"dense because: {fallback}" for fallback in self.fallbacks]
        lines += [f"scales {scales}: {why}" for why, scales in self._noted().items()]
        return "\n".join(lines)


def kept_cell(arm: str, kept: int, tokens: int) -> str:
    """How a table shows a layer that ran: its share of kept tokens or `skip`; * where it told entropies."""
    return ("skip" if kept == 0 else f"{kept / tokens:.0%}") + ("*" if arm == "tapped" else "")


def _cell(run: Run | None) -> str:
    return "." if run is None else kept_cell(run.arm, run.kept, run.tokens)


def report_of(run: Generation) -> GenerationReport | None:
    """The report of the compiled model that took part (of several, the one with most runs), or None."""
    if not run.controllers:
        return None
    busiest = max(run.controllers, key=lambda controller: len(controller.ledger.runs))
    busiest.arrive()  # a generation that failed was not settled
    return GenerationReport(run.schedule, run.images, run.exited_at, busiest)
