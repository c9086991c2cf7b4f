"""Writes down what a joined step ran, as its gates would have, and hands on what it leaves for later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
from torch import Tensor

from ..cost.expressions import Sizes
from ..lowering.region import Region
from ..lowering.sizes import IMAGES, KEPT, OFFSET
from .controller import Controller
from .ledger import Run
from .step_decision import LayerDecision


@dataclass(frozen=True)
class Places:
    """Where a layer stands in the cache: the first row as traced, and as it is after pruning."""

    traced: int | None
    offset: int | None


@dataclass(frozen=True)
class Leavings:
    """What a joined step leaves besides its results, by layer: maps [R, L], updates [R, L, C], keep sets."""

    maps: dict[int, Tensor]
    updates: dict[int, Tensor]
    keeps: dict[int, Tensor]


def account(
    controller: Controller,
    decisions: Sequence[LayerDecision],
    places: Sequence[Places],
    left: Leavings,
    sizes: dict[sympy.Symbol, int],
    length: int,
) -> None:
    """Account for one scale.

    Args:
        controller: of the generation.
        decisions: one per layer.
        places: one per layer.
        left: what the graph returned.
        sizes: size symbols of the trace.
        length: L.
    """
    known: dict[tuple[int, Places, int], Sizes] = {}

    def sizes_of(region: Region, place: Places, offset: int | None, count: int) -> Sizes:
        key = id(region), Places(offset, place.offset), count
        if key not in known:
            own = {OFFSET: offset or 0, KEPT: count, IMAGES: controller.images}
            known[key] = region.sizes_from({**sizes, **own})
        return known[key]

    ledger = controller.ledger
    for one, place in zip(decisions, places, strict=True):
        site, layer = one.site, one.site.layer
        for gate, yes in one.answers:
            ledger.answer(gate, layer, yes)
        if site.dense is None:
            continue
        if layer in left.maps:
            controller.observe(layer, left.maps[layer], None, length)
        ran = None if one.ran is None else one.ran.region
        ledger.runs.append(
            Run(
                scale=controller.scale,
                layer=layer,
                arm=one.arm,
                kept=one.count,
                tokens=length,
                region=ran,
                sizes=None if ran is None else sizes_of(ran, place, place.offset, one.count),
                dense=site.dense.region,
                dense_sizes=sizes_of(site.dense.region, place, place.traced, length),
            )
        )
        missing = length - one.count
        if one.arm == "pruned":
            ledger.keep_sets[controller.scale, layer] = (
                one.keep if one.keep is not None else left.keeps[layer]
            )
            missing = 0 if controller.options.pruned_kv == "keep" else missing
        controller.account(layer, missing, left.updates.get(layer))
