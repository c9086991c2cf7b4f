"""Operator `toprovar::select_tokens`: the keep set inside a graph, for layers that rank themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from ..criteria.rows import expand_cfg_rows, join_cfg_rows
from ..criteria.scores import prunability
from ..criteria.selection import select_tokens as select


@torch.library.custom_op("toprovar::select_tokens", mutates_args=())
def select_tokens(entropy: Tensor, count: int, images: int, rule: str, keep_low: bool) -> Tensor:
    """Return the `count` tokens to keep in every row.

    Args:
        entropy: attention entropies in nats, `[R, L]`; rows are [conditional B, unconditional B] or B alone.
        count: K, at least 1.
        images: B.
        rule: how guidance rows decide: "shared", "cond" or "per_row".
        keep_low: keep tokens of low entropy; else of high entropy.

    Returns:
        Indices int64 `[R, K]`, ascending in every row.
    """
    joined = join_cfg_rows(entropy, images, rule)  # type: ignore[arg-type]
    keep = select(-prunability(joined, keep_low), count)
    return expand_cfg_rows(keep, entropy.shape[0]).clone()


@select_tokens.register_fake
def _(entropy: Tensor, count: int, images: int, rule: str, keep_low: bool) -> Tensor:
    return entropy.new_empty((entropy.shape[0], count), dtype=torch.int64)
