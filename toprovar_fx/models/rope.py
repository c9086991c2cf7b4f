"""Two-dimensional rotary position embedding on a grid common to all scales."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.rotate_pairs import rotate_pairs
from ..schedules import Schedule, Side

ROPE_BASE = 10000.0

# Cosines and sines of the tokens' angles, each ``[1, 1, L, head_dim / 2]`` float32.
Angles = tuple[Tensor, Tensor]


def rope_grid(schedule: Schedule, longer_side: int) -> Side:
    """Return (height, width) of the position grid: the schedule's own, else its shape at ``longer_side``."""
    if schedule.grid is not None:
        return schedule.grid
    height, width = schedule.sides[-1]
    longer = max(height, width)
    return round(height * longer_side / longer), round(width * longer_side / longer)


def rope_table(
    schedule: Schedule, head_dim: int, longer_side: int, device: torch.device | None = None
) -> Tensor:
    """Build the rotation table of all tokens of a schedule.

    Token ``(i, j)`` of a map ``(h, w)`` stands at row ``round(i * grid_h / h)`` and column ``round(j * grid_w
    / w)`` of the common grid. Half of the channel pairs rotate with the row, half with the column, by the
    angles ``position * base ** (-2 m / (head_dim / 2))``, m = 0 .. head_dim / 4 - 1 (Infinity's "normalised"
    RoPE2D).

    Args:
        schedule: the scales; ``L`` below is their total number of tokens.
        head_dim: channels per head, a multiple of 4.
        longer_side: longer side of the grid if the schedule has none of its own.
        device: where to build the table.

    Returns:
        Cosine and sine, ``[1, 1, L, head_dim / 2, 2]`` float32, each without gaps in memory.
    """
    grid_height, grid_width = rope_grid(schedule, longer_side)
    half = head_dim // 2
    frequencies = 1.0 / ROPE_BASE ** (torch.arange(0, half, 2, device=device).float() / half)
    angles = []
    for height, width in schedule.sides:
        rows = (torch.arange(height, device=device) * (grid_height / height)).round()
        columns = (torch.arange(width, device=device) * (grid_width / width)).round()
        by_row = torch.outer(rows, frequencies)[:, None, :].expand(-1, width, -1)
        by_column = torch.outer(columns, frequencies)[None, :, :].expand(height, -1, -1)
        angles.append(torch.cat((by_row, by_column), dim=-1).flatten(0, 1))
    angle = torch.cat(angles)
    return torch.stack((angle.cos(), angle.sin())).movedim(0, -1)[None, None]


def angles_of(table: Tensor) -> Angles:
    """Take a table ``[1, 1, L, head_dim / 2, 2]`` apart, once for all layers."""
    cos, sin = table.unbind(-1)
    return cos, sin


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotate adjacent channel pairs ``(2 m, 2 m + 1)``.

    Args:
        x: ``[R, H, L, head_dim]``.
        angles: of the same tokens.

    Returns:
        ``[R, H, L, head_dim]`` float32: the caller rounds once, after the rotation.
    """
    return rotate_pairs(x, *angles)
