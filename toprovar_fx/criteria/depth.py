"""Scale depth D: the scale from which on the image has semantic content enough to be pruned (eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor


def low_entropy_ratio(entropy: Tensor) -> Tensor:
    """Return ``rho = |{i: H_i < mean H}| / L`` (eq. 3).

    The inequality is strict: a constant map, and so a map of one token, has rho = 0.

    Args:
        entropy: Attention entropies H in nats, ``[..., L]``.

    Returns:
        rho in [0, 1), float32, ``[...]``.
    """
    # Relative to its minimum a constant map is exactly 0: rounding of the mean cannot put it below its mean.
    above = entropy.float() - entropy.float().amin(-1, keepdim=True)
    return (above < above.mean(-1, keepdim=True)).float().mean(-1)


def depth_from_ratios(
    rhos: Sequence[float], tau: float, compare: Literal["ge", "le"] = "ge", min_scale: int = 0
) -> int | None:
    """Return D, the first scale s >= ``min_scale`` whose rho_s has crossed ``tau`` (eq. 3), or None.

    Args:
        rhos: rho of the scales that have run, from scale 0.
        tau: Threshold.
        compare: Crossed means ``rho >= tau`` (eq. 3) or ``rho <= tau`` (the paper's appendix).
        min_scale: First scale that may be D. Small maps are degenerate: rho_0 is always 0.
    """
    for scale, rho in enumerate(rhos):
        if scale >= min_scale and (rho >= tau if compare == "ge" else rho <= tau):
            return scale
    return None


def join_depths(depths: Sequence[int | None]) -> int | None:
    """Return the depth of a batch: the latest of its samples' depths, None if any sample has none yet."""
    found = [depth for depth in depths if depth is not None]
    return max(found) if found and len(found) == len(depths) else None
