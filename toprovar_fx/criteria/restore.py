"""Maps of one scale read at another: entropies, and the sublayer updates that pruned tokens get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def upsample_map(
    statistic: Tensor, size: Size, target: Size, mode: Literal["bilinear", "area"] = "bilinear"
) -> Tensor:
    """Return a statistic per token of one scale at the tokens of another.

    Args:
        statistic: ``[R, h*w]``, row-major.
        size: ``(h, w)`` of the scale it was measured at.
        target: ``(h2, w2)`` of the scale that needs it.
        mode: ``bilinear`` (pixel centres aligned) has no ties; ``area`` repeats values when it enlarges.

    Returns:
        float32, ``[R, h2*w2]``.
    """
    grid = statistic.float().reshape(-1, 1, *size)
    resized = F.interpolate(grid, size=target, mode=mode)
    return resized.reshape(statistic.shape[0], -1)


def restore_delta(delta: Tensor, size: Size, target: Size) -> Tensor:
    """Return a sublayer's update of a dense scale, area-interpolated to a later scale (as FastVAR does).

    Args:
        delta: Update of every token, ``[R, h*w, C]``, row-major.
        size: ``(h, w)`` of the dense scale.
        target: ``(h2, w2)`` of the scale being pruned.

    Returns:
        ``[R, h2*w2, C]`` in the dtype of ``delta``, equal to ``F.interpolate(mode="area")`` on the map.
    """
    rows, _, channels = delta.shape
    grid = delta.reshape(rows, *size, channels).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=target, mode="area")
    return resized.permute(0, 2, 3, 1).reshape(rows, target[0] * target[1], channels)


def scatter_rows(known: Tensor | None, keep: Tensor, rows: Tensor, length: int) -> Tensor:
    """Return the entropies of all tokens after a layer that computed some of them.

    Args:
        known: the map before, ``[R, L]``; without one the others get the mean of the computed ones.
        keep: the tokens that were computed, ``[R, K]`` int64.
        rows: their entropies in nats, ``[R, K]``.
        length: L.

    Returns:
        float32, ``[R, L]``.
    """
    base = rows.mean(-1, keepdim=True).expand(-1, length) if known is None else known
    return base.scatter(1, keep, rows.to(torch.float32))


def scatter_rows_together(
    known: Sequence[Tensor], keep: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return what `scatter_rows` gives for each of N layers that computed equally many tokens.

    Args:
        known: the maps before, N of ``[R, L]``.
        keep: the tokens that were computed, N of ``[R, K]`` int64.
        rows: their entropies in nats, N of ``[R, K]``.

    Returns:
        N maps, float32 ``[R, L]``.
    """
    maps, tokens, nats = (torch.stack(list(each)) for each in (known, keep, rows))
    return maps.scatter(2, tokens, nats.to(torch.float32)).unbind()
