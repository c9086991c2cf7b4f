"""Token saliency and keep probability (eqs. 5 and 6)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalisation = Literal["mean", "rank", "minmax", "literal"]


def scale_weight(scale: int, scales: int) -> float:
    """Return ``phi = s / S_max``: (scale + 1) / scales, since the paper counts scales from 1."""
    return (scale + 1) / scales


def normalise_entropy(entropy: Tensor, how: Normalisation = "mean") -> Tensor:
    """Return the normalised entropy Hhat (eq. 5 and its repairs).

    Args:
        entropy: Non-negative statistic H, ``[..., L]``; larger means less salient.
        how: ``literal``: ``H / sum H`` as printed, which sums to 1, so that eq. 6 drops nearly every token
            alike. ``mean``: ``L H / sum H``, of mean 1. ``rank``: rank / (L - 1) in [0, 1], equal values
            share their mean rank. ``minmax``: ``(H - min) / (max - min)`` in [0, 1].

    Returns:
        Hhat, float32, ``[..., L]``. A map without information (constant; all zero) gets 1/L, 1, 0.5 or 0.5.
    """
    entropy = entropy.float()
    length = entropy.shape[-1]
    if how == "literal" or how == "mean":
        total = entropy.sum(-1, keepdim=True)
        share = torch.where(total > 0, entropy / total, 1 / length)
        return share if how == "literal" else share * length
    if how == "rank":
        ordered = entropy.sort(-1).values.contiguous()
        values = entropy.contiguous()
        below = torch.searchsorted(ordered, values)
        up_to = torch.searchsorted(ordered, values, right=True)
        return (below + up_to - 1).float() / 2 / (length - 1) if length > 1 else torch.full_like(entropy, 0.5)
    low, high = entropy.aminmax(dim=-1, keepdim=True)
    return torch.where(high > low, (entropy - low) / (high - low), 0.5)


def keep_probability(
    normalised: Tensor, detail: Tensor | float, weight: float, alpha_min: float, alpha_max: float
) -> Tensor:
    """Return ``P_keep = 1 - clip(a_min + (a_max - a_min) q, 0, 1)`` with ``q = phi R Hhat`` (eqs. 5 and 6).

    Args:
        normalised: Hhat, ``[..., L]``.
        detail: R of the layer, a number or ``[...]``.
        weight: phi of the scale.
        alpha_min: Prune rate at q = 0.
        alpha_max: Prune rate at q = 1.

    Returns:
        Keep probabilities in [0, 1], float32, ``[..., L]``.
    """
    scope = detail.float().unsqueeze(-1) if isinstance(detail, Tensor) else detail
    q = (scope if weight == 1 else weight * scope) * normalised.float()
    return 1 - (alpha_min + (alpha_max - alpha_min) * q).clamp(0, 1)


def mean_retention(
    saliency: float, detail: float, weight: float, alpha_min: float, alpha_max: float
) -> float:
    """Return ``P_keep`` of eq. 6 for one token of normalised entropy ``saliency``, without a tensor.

    Args:
        saliency: Hhat, typically its mean over a map.
        detail: R of the layer.
        weight: phi of the scale.
        alpha_min: Prune rate at q = 0.
        alpha_max: Prune rate at q = 1.
    """
    rate = alpha_min + (alpha_max - alpha_min) * weight * detail * saliency
    return 1 - min(max(rate, 0.0), 1.0)
