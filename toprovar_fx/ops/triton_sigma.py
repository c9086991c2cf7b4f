"""The kernel behind `sigma_ratio`, in plain Triton: any CUDA card, and the interpreter.

One program takes one matrix and computes what `criteria.scope.sigma_ratio` does, with its constants: the
powers of the Gram matrix stay in registers, where a chain of operators would be some seventy kernels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..criteria.scope import RANK_ONE, SQUARINGS, TINY, UNSCALED

# The constants of the criterion.
NUMBERS = {"TIMES": SQUARINGS, "EVERY": UNSCALED, "ROUNDING": RANK_ONE, "SMALLEST": TINY}


@triton.jit
def leading(matrix, row, inside, TIMES: tl.constexpr, EVERY: tl.constexpr, SMALLEST: tl.constexpr):
    """First left singular vector ``[H]`` of ``[H, W]``, and its product ``[W]`` with it."""
    square = row[:, None] == row[None, :]
    power = tl.dot(matrix, tl.trans(matrix), input_precision="ieee")
    # A zero matrix has no leading vector; so small a sum leaves others as they are, and gives it one.
    power = tl.where(inside[:, None] & inside[None, :], power + SMALLEST, 0.0)
    for squared in range(TIMES):
        trace = tl.sum(tl.sum(tl.where(square, power, 0.0), 1), 0)
        power = power / tl.where(squared % EVERY == 0, trace, 1.0)
        power = tl.dot(power, power, input_precision="ieee")
    best = tl.argmax(tl.where(inside, tl.sum(tl.where(square, power, 0.0), 1), -1.0), 0)
    vector = tl.sum(tl.where(row[None, :] == best, power, 0.0), 1)
    vector = vector / tl.sqrt(tl.sum(vector * vector, 0))
    return vector, tl.sum(vector[:, None] * matrix, 0)


@triton.jit(do_not_specialize=["height", "width", "step_row", "step_column", "step_matrix"])
def sigma_ratio_kernel(
    matrices, ratios, height, width, step_matrix, step_row, step_column,
    CENTRE: tl.constexpr, TIMES: tl.constexpr, EVERY: tl.constexpr, ROUNDING: tl.constexpr,
    SMALLEST: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """``sigma1 / sigma2`` of one of N matrices ``[height, width]``, ``height <= width``; ``ratios [N]``."""
    own = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, H), tl.arange(0, W)
    inside = row < height
    entry = inside[:, None] & (column < width)[None, :]
    place = row[:, None] * step_row + column[None, :] * step_column
    rest = tl.load(matrices + own * step_matrix + place, mask=entry, other=0.0).to(tl.float32)
    entries = tl.max(tl.max(tl.abs(rest), 1), 0)
    if CENTRE:
        mean = tl.sum(tl.sum(rest, 1), 0) / (height * width)
        rest = tl.where(entry, rest - mean, 0.0)
    largest = tl.max(tl.max(tl.abs(rest), 1), 0)
    # Unit magnitude: Gram entries neither overflow nor underflow. A constant map, centred, is only rounding;
    # and one with a NaN, which a maximum may lose, is as flat as where none does.
    some = (largest > entries * ROUNDING) & (tl.sum(tl.sum(rest * 0.0, 1), 0) == 0.0)
    rest = tl.where(some, rest / tl.maximum(largest, SMALLEST), 0.0)
    left, right = leading(rest, row, inside, TIMES, EVERY, SMALLEST)
    _, second_right = leading(rest - left[:, None] * right[None, :], row, inside, TIMES, EVERY, SMALLEST)
    first = tl.sqrt(tl.sum(right * right, 0))
    second = tl.sqrt(tl.sum(second_right * second_right, 0))
    ratio = tl.maximum(first / second, 1.0)
    tl.store(ratios + own, tl.where(second <= ROUNDING * first, float("inf"), ratio))


def launch(matrices: Tensor, centre: bool) -> Tensor:
    """Run the kernel: ``[..., h, w]`` of any dtype and strides to float32 ``[...]``."""
    flat = matrices.flatten(0, -3) if matrices.dim() > 2 else matrices[None]
    if flat.shape[-2] > flat.shape[-1]:
        flat = flat.transpose(-2, -1)
    count, height, width = flat.shape
    ratios = torch.empty(count, dtype=torch.float32, device=flat.device)
    padded_height, padded_width = (max(16, triton.next_power_of_2(side)) for side in (height, width))
    sigma_ratio_kernel[(count,)](
        flat, ratios, height, width, *flat.stride(),
        CENTRE=centre, **NUMBERS, H=padded_height, W=padded_width, num_warps=4,
    )  # fmt: skip
    return ratios.view(matrices.shape[:-2])
