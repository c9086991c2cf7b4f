"""The kernel behind `toprovar::rotated_attention`: what `triton_rotation` and `triton_few_keys` do."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cards import HOPPER, MOST_PROGRAMS, capability
from .triton_chain import begin, chained
from .triton_rotation import rotate_pairs, to_unit

# Measured against the two kernels on an H200; see docs/results.md.
WIDTHS = (64, 128)
MOST_TOKENS = 64
MOST_KEYS = 512
QUERIES_PER_PROGRAM = 16
KEYS_AT_ONCE = 32
WARPS = 8


# Lengths and offsets change from scale to scale: one compilation for all with as many tokens, about.
@triton.jit(do_not_specialize=["tokens", "start"])
def rotated_attention_kernel(
    qkv, q_bias, v_bias, log_factor, cos, sin, keep, out, keys, values,
    tokens, start, heads, max_log_factor, factor,
    c_r, c_n, c_d, s_r, s_n, s_d, k_r, k_h, k_n, v_r, v_h, v_n,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TOKENS: tl.constexpr, KEEP: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Some queries of a head; the grid is ``[L / BLOCK_M, R H]``. ``factor``: the scale times log2(e).

    Every program makes all keys and values of its head's tokens, at most TOKENS; the first writes them.
    """
    begin(CHAINED)
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    half = out.dtype.element_ty
    channels = tl.arange(0, D)
    pairs = tl.arange(0, D // 2)
    width = heads * D
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    own = tl.arange(0, TOKENS)
    asks, here = (at < tokens)[:, None], (own < tokens)[:, None]
    source = qkv + row * tokens * 3 * width + head * D + channels[None, :]
    q = tl.load(source + at[:, None] * 3 * width, mask=asks, other=0.0).to(tl.float32)
    k = tl.load(source + own[:, None] * 3 * width + width, mask=here, other=0.0).to(tl.float32)
    # The first keys of the cache, all there are at the small scales, come on the same trip.
    keys += row * k_r + head * k_h
    values += row * v_r + head * v_h
    older = tl.arange(0, BLOCK_N)
    old = older < start
    old_keys = tl.load(keys + older[None, :] * k_n + channels[:, None], mask=old[None, :], other=0.0)
    old_values = tl.load(values + older[:, None] * v_n + channels[None, :], mask=old[:, None], other=0.0)
    q_place, k_place = at, own
    if KEEP:
        q_place = tl.load(keep + row * tokens + at, mask=at < tokens, other=0)
        k_place = tl.load(keep + row * tokens + own, mask=own < tokens, other=0)
    q_cos = tl.load(cos + row * c_r + q_place[:, None] * c_n + pairs[None, :] * c_d, mask=asks, other=0.0)
    q_sin = tl.load(sin + row * s_r + q_place[:, None] * s_n + pairs[None, :] * s_d, mask=asks, other=0.0)
    k_cos = tl.load(cos + row * c_r + k_place[:, None] * c_n + pairs[None, :] * c_d, mask=here, other=0.0)
    k_sin = tl.load(sin + row * s_r + k_place[:, None] * s_n + pairs[None, :] * s_d, mask=here, other=0.0)
    to_q = tl.load(q_bias + head * D + channels).to(tl.float32)[None, :]
    # The bias is rounded before it is added, as in the model.
    to_v = tl.load(v_bias + head * D + channels).to(half).to(tl.float32)[None, :]
    log = tl.load(log_factor + head).to(tl.float32)

    # A NaN stays one, unlike in minimum().
    log = tl.where(log > max_log_factor, max_log_factor, log)
    x = rotate_pairs(to_unit(q + to_q) * tl.exp(log), q_cos, q_sin, BLOCK_M, D).to(half)
    k = rotate_pairs(to_unit(k), k_cos, k_sin, TOKENS, D).to(half)
    v = tl.load(source + own[:, None] * 3 * width + 2 * width, mask=here, other=0.0).to(tl.float32)
    v = (v + to_v).to(half)
    if tl.program_id(0) == 0:
        slot = (start + own).to(tl.int64)[:, None]
        tl.store(keys + slot * k_n + channels[None, :], k, mask=here)
        tl.store(values + slot * v_n + channels[None, :], v, mask=here)

    of_old = tl.where(old[None, :], tl.dot(x, old_keys) * factor, float("-inf"))
    of_own = tl.where((own < tokens)[None, :], tl.dot(x, tl.trans(k)) * factor, float("-inf"))
    peak = tl.maximum(tl.max(of_old, 1), tl.max(of_own, 1))
    to_old, to_own = tl.exp2(of_old - peak[:, None]), tl.exp2(of_own - peak[:, None])
    mass = tl.sum(to_old, 1) + tl.sum(to_own, 1)
    sums = tl.dot(to_own.to(half), v, tl.dot(to_old.to(half), old_values))
    for first in tl.range(BLOCK_N, start, BLOCK_N, num_stages=2):
        key = first + tl.arange(0, BLOCK_N)
        inside = key < start
        slots = key.to(tl.int64)
        key_tile = tl.load(keys + slots[None, :] * k_n + channels[:, None], mask=inside[None, :], other=0.0)
        tile = tl.load(values + slots[:, None] * v_n + channels[None, :], mask=inside[:, None], other=0.0)
        logits = tl.where(inside[None, :], tl.dot(x, key_tile) * factor, float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        p = tl.exp2(logits - higher[:, None])
        decay = tl.exp2(peak - higher)
        mass = mass * decay + tl.sum(p, 1)
        sums = tl.dot(p.to(half), tile, sums * decay[:, None])
        peak = higher
    result = (sums / mass[:, None]).to(half)
    to = out + (row * tokens + at[:, None]) * width + head * D + channels[None, :]
    tl.store(to, result, mask=asks)


def tokens_for(tokens: int) -> int:
    """How many tokens a program has room for."""
    return max(16, triton.next_power_of_2(tokens))


def takes(qkv: Tensor, keys: Tensor, values: Tensor, start: int) -> bool:
    """Whether the kernel runs operands of `rotated_qkv`, and was measured to be faster at such sizes."""
    rows, tokens, _, heads, width = qkv.shape
    return (
        qkv.dtype in (torch.bfloat16, torch.float16)
        and capability(qkv.device) == HOPPER
        and width in WIDTHS
        and 0 < tokens <= MOST_TOKENS
        and start + tokens <= MOST_KEYS
        and rows * heads <= MOST_PROGRAMS
        and keys.stride(3) == values.stride(3) == 1
    )


def launch(
    qkv: Tensor, q_bias: Tensor, v_bias: Tensor, log_factor: Tensor, max_log_factor: float, cos: Tensor,
    sin: Tensor, keys: Tensor, values: Tensor, start: int, keep: Tensor | None, scale: float,
) -> Tensor:  # fmt: skip
    """Run the kernel; operands as `rotated_qkv`. Returns ``[R, H, L, D]``, laid out as ``[R, L, H, D]``."""
    rows, tokens, _, heads, width = qkv.shape
    qkv, q_bias, v_bias, log_factor = (x.contiguous() for x in (qkv, q_bias, v_bias, log_factor))
    out = qkv.new_empty(rows, tokens, heads, width)
    # A table of one row serves all of them.
    tables = [step for x in (cos, sin) for step in (x.stride(0) * (len(x) > 1), x.stride(2), x.stride(3))]
    grid = (triton.cdiv(tokens, QUERIES_PER_PROGRAM), rows * heads)
    rotated_attention_kernel[grid](
        qkv, q_bias, v_bias, log_factor, cos, sin, qkv if keep is None else keep.contiguous(), out, keys,
        values, tokens, start, heads, max_log_factor, scale * math.log2(math.e), *tables,
        *keys.stride()[:3], *values.stride()[:3], D=width, BLOCK_M=QUERIES_PER_PROGRAM, BLOCK_N=KEYS_AT_ONCE,
        TOKENS=tokens_for(tokens), KEEP=keep is not None, num_warps=WARPS,
        **chained(out.device),
    )  # fmt: skip
    return out.transpose(1, 2)
