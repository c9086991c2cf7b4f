"""Operators `toprovar::select_tokens` and `select_tokens_by_layer`: keep sets inside a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from ..criteria.rows import expand_cfg_rows, join_cfg_rows
from ..criteria.scores import ranking_score
from ..criteria.selection import select_tokens as select
from .triton_found import has_triton


@torch.library.custom_op("toprovar::select_tokens", mutates_args=())
def select_tokens(entropy: Tensor, count: int, images: int, rule: str, keep_low: bool) -> Tensor:
    """Return the `count` tokens to keep in every row.

    On CUDA two kernels, which count instead of sorting; they join the guidance rows, too.
    Elsewhere a sort. The results are equal, index for index.

    Args:
        entropy: attention entropies in nats, `[R, L]`; rows are [conditional B, unconditional B] or B alone.
        count: K, at least 1.
        images: B.
        rule: how guidance rows decide: "shared", "cond" or "per_row".
        keep_low: keep tokens of low entropy; else of high entropy.

    Returns:
        Indices int64 `[R, K]`, ascending in every row.
    """
    if _has_kernels(entropy, count, images):
        return _by_kernels(entropy, count, images, rule, keep_low)
    joined = join_cfg_rows(entropy, images, rule)  # type: ignore[arg-type]
    keep = select(ranking_score(joined, keep_low), count)
    return expand_cfg_rows(keep, entropy.shape[0]).clone()


@select_tokens.register_fake
def _(entropy: Tensor, count: int, images: int, rule: str, keep_low: bool) -> Tensor:
    return entropy.new_empty((entropy.shape[0], count), dtype=torch.int64)


@torch.library.custom_op("toprovar::select_tokens_by_layer", mutates_args=())
def select_tokens_by_layer(
    entropies: list[Tensor], count: int, images: int, rule: str, keep_low: bool
) -> Tensor:
    """Return what `select_tokens` returns for each of N maps, at the price of one.

    On CUDA the maps are copied next to each other, and the same two kernels take all of them.

    Args:
        entropies: attention entropies in nats, N maps of `[R, L]`.
        count: K, at least 1, the same for all.
        images: B.
        rule: as for `select_tokens`.
        keep_low: as for `select_tokens`.

    Returns:
        Indices int64 `[N, R, K]`, contiguous.
    """
    if _has_kernels(entropies[0], count, images):
        return _by_kernels(torch.stack(entropies), count, images, rule, keep_low)
    joined = join_cfg_rows(torch.stack(entropies, dim=1), images, rule)  # type: ignore[arg-type]
    keep = select(ranking_score(joined, keep_low), count)
    return keep.transpose(0, 1).repeat(1, len(entropies[0]) // len(keep), 1)


@select_tokens_by_layer.register_fake
def _(entropies: list[Tensor], count: int, images: int, rule: str, keep_low: bool) -> Tensor:
    first = entropies[0]
    return first.new_empty((len(entropies), first.shape[0], count), dtype=torch.int64)


def _has_kernels(entropy: Tensor, count: int, images: int) -> bool:
    """Whether the kernels take a map `[R, L]`. What is not allowed is left to `criteria`, which says so."""
    rows_fit = len(entropy) in (images, 2 * images)
    return _on_kernels(entropy) and rows_fit and 0 <= count <= entropy.shape[-1]


def _on_kernels(score: Tensor) -> bool:
    return score.is_cuda and has_triton()


def _by_kernels(entropy: Tensor, count: int, images: int, rule: str, keep_low: bool) -> Tensor:
    """Keep sets `[..., R, K]` of maps `[..., R, L]` on CUDA."""
    from .triton_select import launch

    rows = entropy.shape[-2]
    joined = rows if rule == "per_row" else images
    with torch.cuda.device(entropy.device):
        return launch(entropy, count, joined, low=keep_low, mean=rule == "shared" and rows > images)
