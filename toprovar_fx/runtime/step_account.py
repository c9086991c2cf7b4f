"""Writes down what a joined step ran, as its gates would have, and hands on what it leaves for later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy
from torch import Tensor

from ..cost.expressions import Sizes
from ..input_specs import IMAGES, KEPT, OFFSET
from ..lowering.joined_layers import SelectedKeep
from ..lowering.region import Region
from .controller import Controller
from .ledger import Run
from .maps import Block
from .step_decision import LayerDecision


@dataclass(frozen=True)
class Places:
    """Where a layer stands in the cache: the first row as traced, and as it is after pruning."""

    traced: int | None
    offset: int | None


@dataclass(frozen=True)
class Leavings:
    """What a joined step leaves besides its results.

    Attributes:
        maps, updates: by layer, [R, L] and [R, L, C].
        map_block, update_block: what holds all of them, or None where each is a tensor of its own.
        keeps: which keep sets it selected; `selections` holds them.
        selections: [R, K], or of N layers [N, R, K].
    """

    maps: Mapping[int, Tensor]
    updates: Mapping[int, Tensor]
    map_block: Block | None
    update_block: Block | None
    keeps: Sequence[SelectedKeep]
    selections: Sequence[Tensor]


@dataclass(frozen=True)
class Account:
    """All that is known of a scale before it runs.

    Attributes:
        runs: for the ledger.
        answers: of the gates, as (gate, layer, whether it fired).
        left_out: cache rows that are missing afterwards, by layer.
    """

    runs: tuple[Run, ...]
    answers: tuple[tuple[str, int, bool], ...]
    left_out: Mapping[int, int]


def prepare(
    controller: Controller,
    decisions: Sequence[LayerDecision],
    places: Sequence[Places],
    sizes: dict[sympy.Symbol, int],
    length: int,
) -> Account:
    """Account for the scale that is about to run.

    Args:
        controller: of the generation.
        decisions: one per layer.
        places: one per layer.
        sizes: size symbols of the trace.
        length: L.
    """
    known: dict[tuple[int, int | None, int | None, int], Sizes] = {}

    def sizes_of(region: Region, place: Places, offset: int | None, count: int) -> Sizes:
        key = id(region), offset, place.offset, count
        if key not in known:
            own = {OFFSET: offset or 0, KEPT: count, IMAGES: controller.images}
            known[key] = region.sizes_from({**sizes, **own})
        return known[key]

    keeps_rows = controller.options.pruned_kv == "keep"
    understood = [
        (one, place) for one, place in zip(decisions, places, strict=True) if one.site.dense is not None
    ]
    runs = []
    for one, place in understood:
        ran = None if one.ran is None else one.ran.region
        assert one.site.dense is not None
        runs.append(
            Run(
                scale=controller.scale,
                layer=one.site.layer,
                arm=one.arm,
                kept=one.count,
                tokens=length,
                region=ran,
                sizes=None if ran is None else sizes_of(ran, place, place.offset, one.count),
                dense=one.site.dense.region,
                dense_sizes=sizes_of(one.site.dense.region, place, place.traced, length),
            )
        )
    missing = {
        one.site.layer: 0 if one.arm == "pruned" and keeps_rows else length - one.count
        for one, _ in understood
    }
    return Account(
        runs=tuple(runs),
        answers=tuple((gate, one.site.layer, yes) for one in decisions for gate, yes in one.answers),
        left_out={layer: rows for layer, rows in missing.items() if rows},
    )


def write(
    account: Account, controller: Controller, chosen: Mapping[int, Tensor], left: Leavings, told: bool
) -> None:
    """Write down a scale that ran.

    Args:
        account: what is known of it.
        controller: of the generation.
        chosen: the keep sets that it got.
        left: what it returned.
        told: whether it also tells what its maps say of D and R.
    """
    ledger = controller.ledger
    ledger.runs.extend(account.runs)
    ledger.answers.extend(account.answers)
    controller.observe_step(left.maps, told, left.map_block)
    ledger.chosen.update({(controller.scale, layer): keep for layer, keep in chosen.items()})
    if left.keeps:
        ledger.selected.append((controller.scale, left.keeps, left.selections))
    controller.account_step(account.left_out, left.updates, left.update_block)
