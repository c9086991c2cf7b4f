"""The kernels behind `select_tokens`, in plain Triton: any CUDA card, and the interpreter.

A token's rank is the number of tokens before it, counted rather than sorted: rows are short, and all pairs of
tokens of all rows are independent. A second kernel then numbers the kept tokens of a row from left to right.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens that a program ranks, and those that it compares them with at a time: a multiple.
RANKED_PER_PROGRAM = 32
COMPARED_AT_ONCE = 128
# Tokens that a program numbers at a time; most rows are shorter.
NUMBERED_AT_ONCE = 1024


@triton.jit
def load_scores(scores, row, joined, at, length, LOW: tl.constexpr, MEAN: tl.constexpr):
    """Scores of the tokens ``at`` such that the highest is the first; -inf for a NaN and behind the end."""
    inside = at < length
    score = tl.load(scores + row * length + at, mask=inside, other=0.0).to(tl.float32)
    if MEAN:
        # Halfway as `torch.lerp` computes it on a card.
        other = tl.load(scores + (row + joined) * length + at, mask=inside, other=0.0).to(tl.float32)
        score = tl.fma(score - other, 0.5, other)
    if LOW:
        score = -score
    return tl.where(inside & (score == score), score, float("-inf"))


# Lengths and counts change from scale to scale, and maps stand anywhere: one compilation for all of them.
@triton.jit(
    do_not_specialize=["length", "count", "rows", "joined"],
    do_not_specialize_on_alignment=["scores", "kept"],
)
def ranks_kernel(
    scores, kept, length, count, rows, joined,
    LOW: tl.constexpr, MEAN: tl.constexpr, RANKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some tokens of one row; the grid is ``[N J, L / RANKED]``.

    ``scores`` is ``[N, R, L]``, of which J rows count; ``kept`` int8 ``[N, J, L]``: whether a token is one of
    the first ``count``.
    """
    own = tl.program_id(0)
    row = (own // joined * rows + own % joined).to(tl.int64)
    at = tl.program_id(1) * RANKED + tl.arange(0, RANKED)
    score = load_scores(scores, row, joined, at, length, LOW, MEAN)[:, None]
    # Numbers of tokens before, as floats: a card compares and adds these in half the instructions.
    before = tl.zeros((RANKED, BLOCK), tl.float32)
    # Among equals the lower index is first: a look at both is only needed in the block around the own tokens.
    around = tl.program_id(1) * RANKED // BLOCK * BLOCK
    for start in range(0, around, BLOCK):
        other = load_scores(scores, row, joined, start + tl.arange(0, BLOCK), length, LOW, MEAN)[None, :]
        before += (other >= score).to(tl.float32)
    for start in range(around, length, BLOCK):
        other = load_scores(scores, row, joined, start + tl.arange(0, BLOCK), length, LOW, MEAN)[None, :]
        before += (other > score).to(tl.float32)
    others = around + tl.arange(0, BLOCK)
    other = load_scores(scores, row, joined, others, length, LOW, MEAN)[None, :]
    before += ((other == score) & (others[None, :] < at[:, None])).to(tl.float32)
    is_kept = tl.sum(before.to(tl.int32), 1) < count
    tl.store(kept + own.to(tl.int64) * length + at, is_kept.to(tl.int8), mask=at < length)


@triton.jit(
    do_not_specialize=["length", "count", "rows", "joined"], do_not_specialize_on_alignment=["kept", "out"]
)
def gather_kept_kernel(kept, out, length, count, rows, joined, BLOCK: tl.constexpr):
    """One row; the grid is ``[N J]``.

    ``out`` is int64 ``[N, R, K]``: the indices, ascending, in every row that goes by this one.
    """
    own = tl.program_id(0)
    batch = (own // joined).to(tl.int64)
    numbered = tl.zeros((), tl.int32)
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        flag = tl.load(kept + own.to(tl.int64) * length + at, mask=at < length, other=0).to(tl.int32)
        place = numbered + tl.cumsum(flag, 0) - flag
        for row in range(own % joined, rows, joined):
            tl.store(out + (batch * rows + row) * count + place, at.to(tl.int64), mask=flag != 0)
        numbered += tl.sum(flag, 0)


def launch(
    score: Tensor, count: int, joined: int | None = None, low: bool = False, mean: bool = False
) -> Tensor:
    """Run the kernels: `criteria.selection.select_tokens`, index for index.

    Args:
        score: ``[..., R, L]`` or ``[L]``; NaN ranks last.
        count: K in 0 .. L.
        joined: Number of rows J that decide: row r goes by row ``r mod J``. By default each by itself.
        low: The lowest scores are kept, else the highest.
        mean: R is 2 J, and row r goes by the mean of rows ``r mod J`` and ``r mod J + J``.

    Returns:
        Indices, int64, ``[..., R, K]``, ascending.
    """
    length = score.shape[-1]
    rows = score.shape[-2] if score.dim() > 1 else 1
    joined = rows if joined is None else joined
    ranked = score.numel() // max(1, rows * length) * joined
    kept = torch.empty(ranked, length, dtype=torch.int8, device=score.device)
    out = torch.empty(*score.shape[:-1], count, dtype=torch.int64, device=score.device)
    sizes = length, count, rows, joined
    ranks_kernel[(ranked, triton.cdiv(length, RANKED_PER_PROGRAM))](
        score.contiguous(), kept, *sizes,
        LOW=low, MEAN=mean, RANKED=RANKED_PER_PROGRAM, BLOCK=COMPARED_AT_ONCE, num_warps=4,
    )  # fmt: skip
    gather_kept_kernel[(ranked,)](kept, out, *sizes, BLOCK=NUMBERED_AT_ONCE, num_warps=4)
    return out
