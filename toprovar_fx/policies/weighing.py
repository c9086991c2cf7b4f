"""What a device has to compute before the tokens of several layers can be counted and chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..criteria.rows import Rule, join_cfg_rows
from ..criteria.saliency import Normalisation, keep_probability, normalise_entropy
from ..criteria.scores import prunability
from ..criteria.selection import BatchRule, rank_tokens, retention


@dataclass(frozen=True)
class WeighingRules:
    """Constants of `weigh_layers`; see `toprovar_fx.Options` for their meaning.

    Attributes:
        images: B.
        keep_low: whether tokens of low statistic are kept (already resolved by the score).
    """

    images: int
    cfg_rows: Rule
    keep_low: bool
    normalise: Normalisation
    alpha_min: float
    alpha_max: float
    batch_rule: BatchRule


def weigh_layers(statistics: Tensor, rates: Tensor, rules: WeighingRules) -> tuple[Tensor, Tensor, Tensor]:
    """P_keep, retention and ranking of the tokens of N layers.

    Args:
        statistics: what ranks the tokens, ``[R, N, L]``, not negative.
        rates: ``phi R`` of every layer (eq. 5), float64, ``[N]``.
        rules: constants.

    Returns:
        P_keep of eq. 6, float32, ``[B or R, N, L]``; the retention of every layer, float32, ``[N]``; all
        tokens of every layer, those to keep first, int64, ``[B or R, N, L]``.
    """
    saliency = _saliency(statistics, rules)
    normalised = normalise_entropy(saliency, rules.normalise)
    p_keep = keep_probability(normalised, rates, 1.0, rules.alpha_min, rules.alpha_max)
    return p_keep, retention(p_keep, rules.batch_rule), rank_tokens(-saliency)


def rank_layers(statistics: Tensor, rules: WeighingRules) -> Tensor:
    """The ranking of `weigh_layers` alone."""
    return rank_tokens(-_saliency(statistics, rules))


def _saliency(statistics: Tensor, rules: WeighingRules) -> Tensor:
    joined = join_cfg_rows(statistics, rules.images, rules.cfg_rows)
    return prunability(joined, rules.keep_low)


def _called(tensors: Mapping[str, Tensor], rules: WeighingRules) -> tuple[Tensor, ...]:
    return weigh_layers(**tensors, rules=rules)


def _nothing() -> None:
    """There is nothing else to do."""


@dataclass(frozen=True)
class Pacing:
    """How the wait for a device is kept short.

    Attributes:
        weigh: `weigh_layers`, or a recording of it: takes its tensors by name, and `rules`.
        meanwhile: called once the device has its work and before the host waits for it.
    """

    weigh: Callable[..., tuple[Tensor, ...]] = _called
    meanwhile: Callable[[], object] = _nothing


UNPACED = Pacing()
