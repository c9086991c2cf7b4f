"""Products of few rows, dealt out: each part of the inputs' channels is summed apart, in float32.

A product of few rows has few tiles, each of which reads all of its weights one after another, so that most of
a card waits. Parts make more tiles of it. Who reads the result adds them up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import streamed_product
from .cards import HOPPER, capability

# Measured on an H200 (`benchmarks.layer_products`): outputs up to; inputs at least, in outputs; rows up to,
# and in how many parts the product of so many was fastest, adding them up included.
_FASTEST = (
    (2048, 4, ((320, 4), (1024, 2))),
    (2048, 1, ((128, 4), (192, 2))),
    (4096, 4, ((256, 2),)),
    (4096, 1, ((48, 2), (176, 1), (256, 2))),
)
# Smaller ones were not measured.
_LEAST = 1024


def parts_for(rows: int, weight: Tensor) -> int:
    """In how many parts the product of so many rows with a weight `[N, K]` should be summed."""
    outputs, inputs = weight.shape
    if capability(weight.device) != HOPPER or outputs < _LEAST:
        return 1
    for most_outputs, ratio, by_rows in _FASTEST:
        if outputs <= most_outputs and inputs >= ratio * outputs:
            parts = next((parts for most, parts in by_rows if rows <= most), 1)
            return parts if inputs % (8 * parts) == 0 else 1
    return 1


def in_parts(x: Tensor, weight: Tensor) -> Tensor | None:
    """The product ``x W^T`` as the parts that are fastest; None where it is fastest as a whole.

    Args:
        x: `[M, K]`, half precision, on CUDA, contiguous.
        weight: `[N, K]` in its dtype, contiguous.

    Returns:
        `[parts, M, N]` float32; summed over the parts it is the product.
    """
    if streamed_product.takes(x, weight, whole=False):
        return streamed_product.streamed_sums(x, weight)
    parts = parts_for(len(x), weight)
    return None if parts == 1 else sums_of_parts(x, weight, parts)


def sums_of_parts(x: Tensor, weight: Tensor, parts: int) -> Tensor:
    """Parts of the product ``x W^T``.

    Args:
        x: `[M, K]`, half precision, on CUDA, contiguous.
        weight: `[N, K]` in its dtype, contiguous.
        parts: a divisor of K.

    Returns:
        `[parts, M, N]` float32; summed over the parts it is the product.
    """
    rows, outputs = len(x), len(weight)
    inputs = x.shape[1] // parts
    apart = x.view(rows, parts, inputs).transpose(0, 1)
    of_weight = weight.view(outputs, parts, inputs).permute(1, 2, 0)
    return torch.bmm(apart, of_weight, out_dtype=torch.float32)
