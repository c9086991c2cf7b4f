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

if TYPE_CHECKING:
    from ..options import Options


@dataclass(frozen=True)
class LayerPlan:
    """What a layer computes at a pruned scale.

    Attributes:
        count: K, 0 for a skipped layer, L for a whole one.
        keep: indices [R, K] int64, ascending; None where nothing or everything is kept.
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
    statistic = options.scoring.statistic(ask.hidden, ask.entropy, ask.place, options.verify != "never")
    by_itself = options.entropy_source == "same_layer" and options.score == "entropy"
    if statistic is None and by_itself:
        # The layer's entropies come too late for its K: as if all were equal where no older map is known.
        statistic = torch.ones_like(ask.hidden[..., 0], dtype=torch.float32)
    if statistic is None:
        return LayerPlan(length)
    joined = join_cfg_rows(statistic, ask.place.images, options.cfg_rows)
    saliency = prunability(joined, options.scoring.keeps_low(options.keep_low))
    normalised = normalise_entropy(saliency, options.normalise)
    weight = scale_weight(ask.place.scale, ask.place.scales)
    p_keep = keep_probability(normalised, ask.detail, weight, options.alpha_min, options.alpha_max)
    if ask.ratio is not None:
        count = (
            length if ask.ratio >= 1 else round_to_bucket(ask.ratio, length, (max(ask.ratio, 1 / length),))
        )
        count = 0 if ask.ratio == 0 else count
    else:
        count = keep_count(
            p_keep, options.buckets, options.min_keep, options.layer_skip_below, options.batch_rule
        )
    if not options.prune_tokens and ask.ratio is None:
        count = 0 if count == 0 else length
    if count in (0, length):
        return LayerPlan(count)
    # Two tokens at least: a size of one would need another trace of the block.
    count = max(count, 2)
    if by_itself:
        return LayerPlan(count)
    if options.sampling == "bernoulli":
        keep = bernoulli_tokens(p_keep, count, options.seed, ask.place.stream)
    else:
        keep = select_tokens(-saliency, count)
    return LayerPlan(count, expand_cfg_rows(keep, ask.hidden.shape[0]))


def scatter_rows(known: Tensor | None, keep: Tensor, rows: Tensor, length: int) -> Tensor:
    """Entropies [R, L] after a pruned layer: new for the kept tokens, the old value for the others."""
    base = rows.mean(-1, keepdim=True).expand(-1, length).clone() if known is None else known.clone()
    return base.scatter_(1, keep, rows.to(torch.float32))
