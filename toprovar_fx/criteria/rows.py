"""Guidance rows: the two rows of one image, conditional and unconditional, decide together or apart.

With classifier-free guidance the rows are ordered ``[conditional B, unconditional B]``, R = 2B; else R = B.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import ScheduleError

Rule = Literal["shared", "cond", "per_row"]


def join_cfg_rows(statistic: Tensor, images: int, rule: Rule) -> Tensor:
    """Return the statistic that the decision is made from.

    Args:
        statistic: ``[R, ...]`` with R = ``images`` or twice that.
        images: Number of images B.
        rule: ``shared``: mean of both rows; ``cond``: the conditional row; ``per_row``: each row its own.

    Returns:
        ``[B, ...]``, or ``[R, ...]`` for ``per_row``; unchanged without guidance.

    Raises:
        ScheduleError: The number of rows fits neither.
    """
    rows = statistic.shape[0]
    if rows not in (images, 2 * images):
        raise ScheduleError(
            f"{rows} rows in a generation of {images} images: expected {images}, or {2 * images} with "
            "guidance"
        )
    if rows == images or rule == "per_row":
        return statistic
    if rule == "cond":
        return statistic[:images]
    return torch.lerp(statistic[:images].float(), statistic[images:].float(), 0.5)


def expand_cfg_rows(indices: Tensor, rows: int) -> Tensor:
    """Return the keep set of every row, ``[R, K]``, from one per image ``[B, K]`` or per row ``[R, K]``."""
    return indices if indices.shape[0] == rows else indices.repeat(rows // indices.shape[0], 1)
