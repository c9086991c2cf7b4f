"""The kernel behind `toprovar::linear_add...`, in plain Triton: any CUDA card, and the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .triton_chain import begin, chained

if TYPE_CHECKING:
    from .linear_add import WantedNorm

# Fastest on an H200, with 2048 and 3584 channels.
FEW_ROWS = 64
MANY_ROWS = 400
# Channels that a program holds, in registers.
MOST_CHANNELS = 8192


# Lengths change from scale to scale: one compilation for all of them.
@triton.jit(do_not_specialize=["tokens"])
def add_norm_kernel(
    sums, bias, gate, gate_2, residual, scale, scale_2, shift, shift_2, keep, out, normed,
    tokens, part, x_r, x_n, h_r, h_n, gate_r, gate_2_r, scale_r, scale_2_r, shift_r, shift_2_r, eps,
    PARTS: tl.constexpr, BIAS: tl.constexpr, GATES: tl.constexpr, SCALES: tl.constexpr,
    SHIFTS: tl.constexpr, ONE: tl.constexpr, KEEP: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Some tokens of a row; the grid is ``[L / ROWS, R]``. SCALES: 0 for no norm. KEEP: rows of `out`."""
    begin(CHAINED)
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, BLOCK)
    known = channels < C
    here = (at < tokens)[:, None] & known[None, :]
    token = (row * tokens + at)[:, None]
    place = token * C + channels[None, :]
    half = out.dtype.element_ty

    # All that is read is read first: a store might write to it, for all that the compiler knows.
    total = tl.load(sums + place, mask=here, other=0.0).to(tl.float32)
    for other in tl.static_range(1, PARTS):
        total += tl.load(sums + other * part + place, mask=here, other=0.0)
    from_row = residual + row * x_r + at[:, None].to(tl.int64) * x_n + channels[None, :]
    before = tl.load(from_row, mask=here, other=0.0).to(tl.float32)
    if BIAS:
        total += tl.load(bias + channels, mask=known, other=0.0).to(tl.float32)[None, :]
    if GATES > 0:
        factor = tl.load(gate + row * gate_r + channels, mask=known, other=0.0).to(tl.float32)
        if GATES > 1:
            factor += tl.load(gate_2 + row * gate_2_r + channels, mask=known, other=0.0).to(tl.float32)
        total *= factor[None, :]
    if SCALES > 0:
        to_scale = tl.load(scale + row * scale_r + channels, mask=known, other=0.0).to(tl.float32)
        if SCALES > 1:
            to_scale += tl.load(scale_2 + row * scale_2_r + channels, mask=known, other=0.0).to(tl.float32)
        to_shift = tl.load(shift + row * shift_r + channels, mask=known, other=0.0).to(tl.float32)
        if SHIFTS > 1:
            to_shift += tl.load(shift_2 + row * shift_2_r + channels, mask=known, other=0.0).to(tl.float32)
        if ONE:
            to_scale += 1.0
    slot = at[:, None].to(tl.int64)
    if KEEP:
        slot = tl.load(keep + token, mask=(at < tokens)[:, None], other=0)

    rounded = (before + total).to(half)
    tl.store(out + row * h_r + slot * h_n + channels[None, :], rounded, mask=here)
    if SCALES > 0:
        x = rounded.to(tl.float32)
        off = tl.where(known[None, :], x - (tl.sum(x, 1) / C)[:, None], 0.0)
        spread = tl.sum(off * off, 1) / C
        result = off * tl.rsqrt(spread + eps)[:, None] * to_scale[None, :] + to_shift[None, :]
        tl.store(normed + place, result.to(half), mask=here)


def rows_for(rows: int, width: int) -> int:
    """Rows of a program: one while all multiprocessors have some, then two, which read modulations once."""
    return 2 if rows >= MANY_ROWS and 2 * triton.next_power_of_2(width) <= MOST_CHANNELS else 1


def warps_for(rows: int) -> int:
    """Warps of a program; more of them wait less for what a few rows read."""
    return 16 if rows <= FEW_ROWS else 8


def launch(
    sums: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    gate: Sequence[Tensor],
    out: Tensor,
    keep: Tensor | None = None,
    norm: WantedNorm | None = None,
) -> None:
    """Add up the parts of a product and the residual, and normalise the sum.

    Args:
        sums: `[parts, R L, C]`, contiguous; float32 where there are several.
        bias: `[C]`.
        residual: `[R, L, C]`, channels without gaps.
        gate: none to two addends of the product's factor, each `[R or 1, 1, C]` or `[C]`.
        out: what is written: the sums, `[R, L, C]`, or more rows of which `keep` names these.
        keep: `[R, L]` int64, rows of `out`.
        norm: of the sums as they are written; none is wanted without.
    """
    batch, tokens, width = residual.shape
    if batch * tokens == 0:
        return
    taken = rows_for(batch * tokens, width)
    scale, shift = ((), ()) if norm is None else (norm.scale, norm.shift)
    addends: list[Tensor] = []
    steps: list[int] = []
    for given in (gate, scale, shift):
        # What is not there is not read.
        for each in (*given, out, out)[:2]:
            addends.append(each)
            steps.append(each.stride(0) if each.dim() == 3 and len(each) > 1 and each is not out else 0)
    gates, scales, shifts = addends[:2], addends[2:4], addends[4:]
    add_norm_kernel[(triton.cdiv(tokens, taken), batch)](
        sums, out if bias is None else bias, *gates, residual, *scales, *shifts,
        out if keep is None else keep.contiguous(), out, out if norm is None else norm.out,
        tokens, sums.stride(0), *residual.stride()[:2], *out.stride()[:2], *steps,
        0.0 if norm is None else norm.eps,
        PARTS=len(sums), BIAS=bias is not None, GATES=len(gate), SCALES=len(scale), SHIFTS=len(shift),
        ONE=norm is not None and norm.one, KEEP=keep is not None,
        C=width, ROWS=taken, BLOCK=triton.next_power_of_2(width), num_warps=warps_for(batch * tokens),
        **chained(out.device),
    )  # fmt: skip
