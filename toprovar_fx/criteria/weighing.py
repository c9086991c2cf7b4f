"""How many tokens several layers of one scale want, and which first: eqs. 5 and 6 for all of them at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .rows import Rule, join_cfg_rows
from .saliency import Normalisation, keep_probability, normalise_entropy
from .scores import prunability, ranking_score
from .selection import BatchRule, rank_tokens, retention


@dataclass(frozen=True)
class Weighing:
    """The settings that weigh tokens; see `toprovar_fx.Options` for their meaning.

    Attributes:
        keep_low: whether tokens of low statistic are kept (already resolved by the score).
    """

    cfg_rows: Rule
    keep_low: bool
    normalise: Normalisation
    alpha_min: float
    alpha_max: float
    batch_rule: BatchRule


def weigh_layers(statistics: Tensor, rates: Tensor, images: int, rule: Weighing) -> tuple[Tensor, Tensor]:
    """P_keep of the tokens of N layers, and the share of them that every layer wants to keep.

    Args:
        statistics: what ranks the tokens, ``[R, N, L]``, not negative.
        rates: ``phi R`` of every layer (eq. 5), float64, ``[N]``.
        images: B.
        rule: settings.

    Returns:
        P_keep of eq. 6, float32, ``[B or R, N, L]``; the retention of every layer, float32, ``[N]``.
    """
    joined = join_cfg_rows(statistics.float(), images, rule.cfg_rows)
    normalised = normalise_entropy(prunability(joined, rule.keep_low), rule.normalise)
    p_keep = keep_probability(normalised, rates, 1.0, rule.alpha_min, rule.alpha_max)
    return p_keep, retention(p_keep, rule.batch_rule)


def rank_layers(statistics: Tensor, images: int, rule: Weighing) -> Tensor:
    """All tokens of every layer, those to keep first: int64, ``[B or R, N, L]``; arguments as above."""
    joined = join_cfg_rows(statistics.float(), images, rule.cfg_rows)
    return rank_tokens(ranking_score(joined, rule.keep_low))
