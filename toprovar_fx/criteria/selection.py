"""How many tokens a layer keeps, and which."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from torch import Tensor

from .noise import counter_uniform

BatchRule = Literal["mean", "max"]

# Absorbs the rounding of products like 0.7 * 10 before a ceiling.
_SLACK = 1e-6


def retention(p_keep: Tensor, rule: BatchRule = "mean") -> Tensor:
    """Return the share of tokens that each of several layers wants to keep.

    Args:
        p_keep: Keep probabilities, ``[B, N, L]``; the B samples of a layer share one static shape.
        rule: Several samples count by their mean or their largest.

    Returns:
        float32, ``[N]``.
    """
    each = p_keep.float().mean(-1)
    if len(each) == 1:
        return each[0]
    return each.mean(0) if rule == "mean" else each.amax(0)


def round_to_bucket(
    retention: float, length: int, buckets: Sequence[float], min_keep: float = 0.0, skip_below: float = 0.0
) -> int:
    """Return ``round(retention L)`` rounded up to the next of ``ceil(bucket L)``, or L above the largest.

    Args:
        retention: Wanted share of kept tokens in [0, 1].
        length: Number of tokens L.
        buckets: Keep ratios above 0 up to 1, ascending; 1 is implied.
        min_keep: Least ratio kept.
        skip_below: Retention below which the result is 0; takes precedence over ``min_keep``.
    """
    return round_to_buckets([retention], length, buckets, min_keep, skip_below)[0]


def round_to_buckets(
    retentions: Sequence[float],
    length: int,
    buckets: Sequence[float],
    min_keep: float = 0.0,
    skip_below: float = 0.0,
) -> list[int]:
    """As `round_to_bucket`, of several layers of one scale."""
    counts, least = _bucket_counts(length, tuple(buckets)), _ceil(min_keep * length)
    wanted = [max(math.floor(share * length + 0.5), least) for share in retentions]
    return [
        0 if share < skip_below else counts[bisect_left(counts, count)] if count <= counts[-1] else length
        for share, count in zip(retentions, wanted, strict=True)
    ]


@lru_cache
def _bucket_counts(length: int, buckets: tuple[float, ...]) -> tuple[int, ...]:
    """The counts that are rounded up to, ascending, the last one L."""
    return *(min(length, _ceil(ratio * length)) for ratio in buckets), length


def select_tokens(score: Tensor, count: int) -> Tensor:
    """Return the ``count`` tokens of highest score; among equals the lower index wins.

    Rank by the statistic itself (``ranking_score``), not by the clipped ``P_keep``: clipping, and R = 0, make
    tokens equal, and the tie rule would then keep the top of the image.

    Args:
        score: ``[..., L]``; NaN ranks last.
        count: K in 0 .. L.

    Returns:
        Indices, int64, ``[..., K]``, ascending.

    Raises:
        ValueError: ``count`` is out of range.
    """
    if not 0 <= count <= score.shape[-1]:
        raise ValueError(f"count={count}: expected 0 to {score.shape[-1]} of {score.shape[-1]} tokens")
    return rank_tokens(score)[..., :count].sort(dim=-1).values


def rank_tokens(score: Tensor) -> Tensor:
    """Return all tokens, the highest score first; among equals the lower index is first.

    Args:
        score: ``[..., L]``; NaN ranks last.

    Returns:
        Indices, int64, ``[..., L]``.
    """
    order = score.float().nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    return order.sort(dim=-1, descending=True, stable=True).indices


def bernoulli_tokens(p_keep: Tensor, count: int, seeds: int | Tensor, stream: int) -> Tensor:
    """Return ``count`` tokens drawn with probabilities close to ``P_keep`` (eq. 6 read as a coin per token).

    With u the token's uniform number, the coin keeps it if ``u < p``, that is if the ratio of odds
    ``u (1 - p) / (p (1 - u))`` is below 1. Keeping the K smallest ratios is Pareto sampling (Rosen 1997):
    exactly K tokens, those of the coins cut or filled up in the order of the ratio; certain tokens come first
    and impossible ones last.

    Args:
        p_keep: ``[..., L]`` in [0, 1].
        count: K in 0 .. L.
        seeds: One seed, or int64 seeds of the shape of the leading axes.
        stream: See :func:`counter_uniform`.

    Returns:
        Indices, int64, ``[..., K]``, ascending.
    """
    p_keep = p_keep.float()
    u = counter_uniform(seeds, stream, p_keep.shape[-1], p_keep.device)
    odds_ratio = u * (1 - p_keep) / (p_keep * (1 - u))
    return select_tokens(-odds_ratio, count)


def _ceil(value: float) -> int:
    return math.ceil(value - _SLACK)
