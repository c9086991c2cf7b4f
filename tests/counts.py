"""K of one layer from its keep probabilities, by the two functions that the compiler asks apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from toprovar_fx.criteria import retention, round_to_bucket


def keep_count(
    p_keep: Tensor,
    buckets: Sequence[float],
    min_keep: float = 0.0,
    skip_below: float = 0.0,
    rule: Literal["mean", "max"] = "mean",
) -> int:
    """K of samples [..., L] that share one static shape."""
    samples = p_keep.flatten(end_dim=-2) if p_keep.dim() > 1 else p_keep[None]
    share = float(retention(samples[:, None], rule))
    return round_to_bucket(share, p_keep.shape[-1], buckets, min_keep, skip_below)
