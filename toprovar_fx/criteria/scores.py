"""What else than entropy can rank tokens, and the direction of a ranking."""

from __future__ import annotations

import torch
from torch import Tensor

from .noise import counter_uniform


def frequency_score(tokens: Tensor) -> Tensor:
    """Return ``sum_c (x_c - mean_L x_c)^2``, the squared distance from the mean token (FastVAR's score).

    Args:
        tokens: Residual stream, ``[R, L, C]``.

    Returns:
        Scores, float32, ``[R, L]``; larger means finer detail, to be kept.
    """
    tokens = tokens.float()
    return (tokens - tokens.mean(-2, keepdim=True)).square().sum(-1)


def random_score(
    seeds: int | Tensor, stream: int, length: int, device: torch.device | str | None = None
) -> Tensor:
    """Return a uniform score, the control that every criterion has to beat; see :func:`counter_uniform`."""
    return counter_uniform(seeds, stream, length, device)


def prunability(statistic: Tensor, keep_low: bool) -> Tensor:
    """Return a non-negative statistic oriented as eq. 5 wants it: the larger, the sooner pruned.

    Args:
        statistic: ``[..., L]``, non-negative.
        keep_low: Tokens with low values are to be kept, as with entropy. Else the values are mirrored within
            their range, ``max + min - x``, as for the frequency score.

    Returns:
        float32, ``[..., L]``.
    """
    statistic = statistic.float()
    if keep_low:
        return statistic
    low, high = statistic.aminmax(dim=-1, keepdim=True)
    return high - (statistic - low)


def ranking_score(statistic: Tensor, keep_low: bool) -> Tensor:
    """Return the score whose highest tokens are kept, the order of :func:`prunability` without its rounding.

    Args:
        statistic: ``[..., L]``.
        keep_low: Tokens with low values are to be kept.

    Returns:
        ``[..., L]``, for :func:`select_tokens` and :func:`rank_tokens`.
    """
    return -statistic if keep_low else statistic
