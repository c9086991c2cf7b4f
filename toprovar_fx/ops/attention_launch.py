"""Launches the Hopper kernel for attention without entropies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .attention_plan import KEYS_PER_STEP, WIDTH, Deal, choose_deal, filled_ranges, tiles_of
from .cards import HOPPER, capability
from .triton_launch import GLUON_KNOWN, allows_tma, hopper_maps
from .triton_merge import empty_parts, merge

# Tiles of keys, and as many of values, in shared memory.
STAGES = 2


def has_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether the Hopper kernel takes these operands, on the card that they are on."""
    return (
        GLUON_KNOWN
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.dtype == k.dtype == v.dtype
        and q.device == k.device == v.device
        and capability(q.device) == HOPPER
        and q.shape[3] == k.shape[3] == v.shape[3] == WIDTH
        and k.shape[:3] == v.shape[:3]
        and q.shape[0] == k.shape[0]
        and q.shape[1] % k.shape[1] == 0
        and scale > 0
        and all(allows_tma(x) for x in (q, k, v))
    )


def deal_for(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Deal | None:
    """As `choose_deal`; None for what the kernel does not take."""
    if q.numel() == 0 or k.numel() == 0 or not has_kernel(q, k, v, scale):
        return None
    multiprocessors = torch.cuda.get_device_properties(q.device).multi_processor_count
    return choose_deal(q.shape[2], k.shape[2], q.shape[0] * q.shape[1], multiprocessors)


def launch(q: Tensor, k: Tensor, v: Tensor, scale: float, deal: Deal) -> Tensor:
    """Run the kernel, and where tiles are dealt out the one that adds up their ranges.

    Args:
        q: Queries ``[B, H, Lq, E]``, bfloat16 or float16.
        k: Keys ``[B, Hk, Lk, E]``.
        v: Values, like keys.
        scale: Factor of the logits, positive.
        deal: Of the tiles; more ranges than there are steps are as many.

    Returns:
        ``[B, H, Lq, E]``, laid out as ``[B, Lq, H, E]`` in memory.
    """
    from .gluon_dealt_attention import dealt_kernel

    batch, heads, queries, channels = q.shape
    keys, every = k.shape[2], batch * heads
    tiles = tiles_of(queries, every)
    whole, ranges = deal.whole, filled_ranges(-(-keys // KEYS_PER_STEP), deal.ranges)
    apart = tiles - whole if ranges > 1 else 0
    whole = tiles - apart
    pieces = whole + apart * ranges
    out = q.new_empty(batch, queries, heads, channels).transpose(1, 2)
    parts = empty_parts(q, apart * ranges)
    dealt_kernel[(min(pieces, deal.programs),)](
        *hopper_maps((q, k, v, out), KEYS_PER_STEP), parts, queries, keys, heads, heads // k.shape[1], every,
        whole, ranges, pieces, scale * math.log2(math.e),
        D=channels, BLOCK_N=KEYS_PER_STEP, STAGES=STAGES, num_warps=4, launch_pdl=True,
    )  # fmt: skip
    if apart:
        merge(parts, out, whole, ranges)
    return out
