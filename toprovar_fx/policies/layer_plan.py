"""Which layers may be pruned, how much each keeps, and which tokens: the criterion applied to one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..criteria.rows import expand_cfg_rows, join_cfg_rows
from ..criteria.saliency import keep_probability, normalise_entropy, scale_weight
from ..criteria.score_registry import ScoreContext
from ..criteria.scores import prunability
from ..criteria.selection import bernoulli_tokens, keep_count, round_to_bucket, select_tokens
from .graph_support import GraphGates, graph_gates

if TYPE_CHECKING:
    from ..options import Options

# A size of one would need another trace of the block.
FEWEST_TOKENS = 2


@dataclass(frozen=True)
class LayerPlan:
    """What a layer computes at a pruned scale.

    Attributes:
        count: K, 0 for a skipped layer, L for a whole one.
        keep: indices [R, K] int64, ascending; None where nothing or everything is kept, or the graph selects.
    """

    count: int
    keep: Tensor | None = None


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
    length = ask.hidden.shape[1]
    if options.gate == "graph" and ask.ratio is not None and graph_gates(options) is GraphGates.TOKENS:
        unknown = options.scoring.reads_entropy and ask.entropy is None
        count = length if unknown else explicit_count(ask.ratio, length)
        return LayerPlan(count if count in (0, length) else max(count, FEWEST_TOKENS))
    statistic = options.scoring.statistic(ask.hidden, ask.entropy, ask.place, options.verify != "never")
    by_itself = options.entropy_source == "same_layer" and options.score == "entropy"
    if statistic is None and by_itself:
        # The layer's entropies come too late for its K: as if all were equal where no older map is known.
        statistic = torch.ones_like(ask.hidden[..., 0], dtype=torch.float32)
    if statistic is None:
        return LayerPlan(length)
    joined = join_cfg_rows(statistic, ask.place.images, options.cfg_rows)
    saliency = prunability(joined, options.scoring.keeps_low(options.keep_low))
    if ask.ratio is not None:
        count = explicit_count(ask.ratio, length)
    else:
        count = keep_count(
            _retention(options, ask, saliency),
            options.buckets,
            options.min_keep,
            options.layer_skip_below,
            options.batch_rule,
        )
    if not options.prune_tokens and ask.ratio is None:
        count = 0 if count == 0 else length
    if count in (0, length):
        return LayerPlan(count)
    count = max(count, FEWEST_TOKENS)
    if by_itself:
        return LayerPlan(count)
    if options.sampling == "bernoulli":
        p_keep = _retention(options, ask, saliency)
        keep = bernoulli_tokens(p_keep, count, options.seed, ask.place.stream)
    else:
        keep = select_tokens(-saliency, count)
    return LayerPlan(count, expand_cfg_rows(keep, ask.hidden.shape[0]))


def _retention(options: Options, ask: LayerQuestion, saliency: Tensor) -> Tensor:
    """P_keep of every token (eq. 6), ``[B, L]`` or ``[R, L]``."""
    normalised = normalise_entropy(saliency, options.normalise)
    weight = scale_weight(ask.place.scale, ask.place.scales)
    return keep_probability(normalised, ask.detail, weight, options.alpha_min, options.alpha_max)


def explicit_count(ratio: float, length: int) -> int:
    """K of an explicit keep ratio, before `FEWEST_TOKENS` applies: 0 for 0, L from 1 on."""
    if ratio == 0:
        return 0
    return length if ratio >= 1 else round_to_bucket(ratio, length, (max(ratio, 1 / length),))
