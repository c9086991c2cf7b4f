"""Which layers may be pruned, how much each keeps, and which tokens: the criterion applied to one layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..criteria.rows import expand_cfg_rows
from ..criteria.saliency import scale_weight
from ..criteria.score_registry import ScoreContext
from ..criteria.selection import bernoulli_tokens, round_to_bucket, round_to_buckets
from ..criteria.weighing import rank_layers
from ..readback import Reading, sent
from .graph_support import GraphGates, graph_gates
from .pacing import UNPACED, Pacing

if TYPE_CHECKING:
    from ..options import Options

# A size of one would need another trace of the block.
FEWEST_TOKENS = 2


@dataclass(frozen=True)
class LayerPlan:
    """What a layer computes at a pruned scale.

    Attributes:
        count: K, 0 for a skipped layer, L for a whole one.
        chosen: the keep set, or what computes it; a step whose graph selects never asks.
    """

    count: int
    chosen: Tensor | Callable[[], Tensor] | None = None

    @property
    def keep(self) -> Tensor | None:
        """Indices [R, K] int64, ascending; None where nothing or everything is kept, or the graph selects."""
        return self.chosen() if callable(self.chosen) else self.chosen


@dataclass(frozen=True)
class LayerQuestion:
    """Everything that decides one layer at one scale.

    Attributes:
        place: layer, scale, sizes and seed.
        hidden: the layer's input [R, L, C].
        detail: R of eq. 4 in [0, 1].
        entropy: the map that ranks the tokens, [R, L] in nats; None if none is known.
        ratio: explicit keep ratio, or None to follow eq. 6.
    """

    place: ScoreContext
    hidden: Tensor
    detail: float
    entropy: Tensor | None
    ratio: float | None


def plan_layer(options: Options, ask: LayerQuestion) -> LayerPlan:
    """Decide K and the keep set of one layer at one pruned scale (eqs. 5 and 6)."""
    return plan_layers(options, [ask])[0]


def plan_layers(options: Options, asks: Sequence[LayerQuestion], pacing: Pacing = UNPACED) -> list[LayerPlan]:
    """The same for several layers of one scale, at the price of one: a device runs dozens of small kernels.

    Args:
        options: the settings.
        asks: one question per layer.
        pacing: how the wait for the device is kept short.
    """
    found = [_plan_or_statistic(options, ask) for ask in asks]
    open_ones = [at for at, plan in enumerate(found) if isinstance(plan, Tensor)]
    if open_ones:
        statistics = torch.stack([plan for plan in found if isinstance(plan, Tensor)], dim=1)
        plans = _plan_by_statistics(options, [asks[at] for at in open_ones], statistics, pacing)
        for at, plan in zip(open_ones, plans, strict=True):
            found[at] = plan
    return [plan for plan in found if isinstance(plan, LayerPlan)]


def _plan_or_statistic(options: Options, ask: LayerQuestion) -> LayerPlan | Tensor:
    """The plan where no value decides, else the statistic [R, L] that does."""
    length = ask.hidden.shape[1]
    if options.gate == "graph" and ask.ratio is not None and graph_gates(options) is GraphGates.TOKENS:
        unknown = options.scoring.reads_entropy and ask.entropy is None
        count = length if unknown else explicit_count(ask.ratio, length)
        return LayerPlan(_not_too_few(count, length))
    statistic = options.scoring.statistic(ask.hidden, ask.entropy, ask.place, options.verify != "never")
    if statistic is None and _ranks_itself(options):
        # The layer's entropies come too late for its K: as if all were equal where no older map is known.
        return torch.ones_like(ask.hidden[..., 0], dtype=torch.float32)
    return LayerPlan(length) if statistic is None else statistic


def _plan_by_statistics(
    options: Options, asks: Sequence[LayerQuestion], statistics: Tensor, pacing: Pacing
) -> list[LayerPlan]:
    """Plans of layers whose tokens have the statistics [R, N, L]."""
    images, rule, length = asks[0].place.images, options.weighing, statistics.shape[-1]
    drawn = options.sampling == "bernoulli"
    p_keep = retentions = None
    if drawn or any(ask.ratio is None for ask in asks):
        weight = scale_weight(asks[0].place.scale, asks[0].place.scales)
        # phi R in double precision, as where a graph decides.
        rates = sent([weight * ask.detail for ask in asks], torch.float64, statistics.device)
        tensors = {"statistics": statistics, "rates": rates}
        p_keep, retentions = pacing.weigh(tensors, images=images, rule=rule)
    counts = _counts(options, asks, retentions, length, pacing.meanwhile)
    some = {at: count for at, count in enumerate(counts) if count not in (0, length)}
    if _ranks_itself(options):
        some = {}
    rows = len(statistics)

    # Plans outlive their questions, which hold hidden states.
    streams = [ask.place.stream for ask in asks]

    @cache
    def draw(at: int) -> Tensor:
        assert p_keep is not None
        keep = bernoulli_tokens(p_keep[:, at], some[at], options.seed, streams[at])
        return expand_cfg_rows(keep, rows)

    @cache
    def first() -> dict[int, Tensor]:
        return _first_tokens(rank_layers(statistics, images, rule), some, rows)

    def take(at: int) -> Tensor:
        return first()[at]

    choose = draw if drawn else take
    return [LayerPlan(count, partial(choose, at) if at in some else None) for at, count in enumerate(counts)]


def _first_tokens(order: Tensor, counts: Mapping[int, int], rows: int) -> dict[int, Tensor]:
    """The keep sets [R, K] of layers by their K; `order` [B or R, N, L] ranks the tokens of every layer."""
    found: dict[int, Tensor] = {}
    for count in set(counts.values()):
        alike = [layer for layer, each in counts.items() if each == count]
        ranked = order.index_select(1, sent(alike, torch.int64, order.device))
        first = ranked[..., :count].sort(dim=-1).values
        # Layers first: every keep set lies in memory as a fresh one does.
        every_row = first.transpose(0, 1).repeat(1, rows // len(order), 1)
        found.update(zip(alike, every_row.unbind(), strict=True))
    return found


def _counts(
    options: Options,
    asks: Sequence[LayerQuestion],
    retentions: Tensor | None,
    length: int,
    meanwhile: Callable[[], object],
) -> list[int]:
    """K of every layer; the host waits only if one of them follows from what was measured."""
    shares: list[float] = [0.0] * len(asks)
    if retentions is not None and any(ask.ratio is None for ask in asks):
        reading = Reading(retentions)
        meanwhile()
        shares = reading.tolist()
    return [
        count if ask.ratio is None else _not_too_few(explicit_count(ask.ratio, length), length)
        for ask, count in zip(asks, wanted_counts(options, shares, length), strict=True)
    ]


def wanted_counts(options: Options, shares: Sequence[float], length: int) -> list[int]:
    """K of layers that want to keep these shares of their L tokens."""
    settings = options.buckets, options.min_keep, options.layer_skip_below
    counts = round_to_buckets(shares, length, *settings)
    if options.prune_tokens:
        fewest = min(FEWEST_TOKENS, length)
        return [count and max(count, fewest) for count in counts]
    return [length if count else 0 for count in counts]


def _not_too_few(count: int, length: int) -> int:
    return count if count in (0, length) else max(count, FEWEST_TOKENS)


def _ranks_itself(options: Options) -> bool:
    return options.entropy_source == "same_layer" and options.score == "entropy"


def explicit_count(ratio: float, length: int) -> int:
    """K of an explicit keep ratio, before `FEWEST_TOKENS` applies: 0 for 0, L from 1 on."""
    if ratio == 0:
        return 0
    return length if ratio >= 1 else round_to_bucket(ratio, length, (max(ratio, 1 / length),))
