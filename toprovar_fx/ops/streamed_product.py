"""Products of few rows whose weights come in before their inputs are there (`gluon_product.py`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from .cards import HOPPER, capability
from .triton_found import has_triton

WEIGHTS_STAY: ContextVar[bool] = ContextVar("weights stay", default=False)
# Measured on an H200 with widths of 2048 and 3584: rows up to which layers are faster than by the library.
MOST_ROWS = 32
LEAST = 2048
# One program on each multiprocessor of an H200, beside which there is room for one of the next kernel.
PROGRAMS = 132
# Of a tile: rows of Hopper's matrix instruction.
OUTPUTS = 64
# Of a thread, on average over its program: two of them have room on a multiprocessor.
REGISTERS = 96
# Channels of all blocks are a multiple of this many.
CHANNELS = 256


class Blocks(NamedTuple):
    """How the kernel is compiled for so many rows.

    Attributes:
        rows: columns of the matrix instruction.
        box: rows that are fetched at once.
        boxes: how often.
        channels: of a block of the weight.
        stages: blocks in shared memory.
    """

    rows: int
    box: int
    boxes: int
    channels: int
    stages: int


class Plan(NamedTuple):
    """Who computes what.

    Attributes:
        blocks: of a tile of outputs.
        units: blocks of all tiles.
        share: units of a program, the last of which may have fewer.
        parts: programs that share a tile, at most.
    """

    blocks: int
    units: int
    share: int
    parts: int

    @property
    def programs(self) -> int:
        """The grid."""
        return math.ceil(self.units / self.share)


def blocks_for(rows: int) -> Blocks:
    """The fastest blocks for 1 to 32 rows."""
    columns = max(8, 1 << (rows - 1).bit_length())
    box = columns
    while box > 8 and rows % box:
        box //= 2
    boxes = math.ceil(rows / box)
    return Blocks(columns, box, boxes, 256, 5) if columns <= 8 else Blocks(columns, box, boxes, 128, 6)


def plan_for(outputs: int, inputs: int, channels: int, whole: bool) -> Plan:
    """Deal out a weight `[outputs, inputs]` evenly, in whole tiles or not."""
    blocks = inputs // channels
    tiles = math.ceil(outputs / OUTPUTS)
    units = tiles * blocks
    share = blocks * math.ceil(tiles / PROGRAMS) if whole else math.ceil(units / PROGRAMS)
    first, last = ([(tile * blocks + at) // share for tile in range(tiles)] for at in (0, blocks - 1))
    return Plan(blocks, units, share, max(b - a + 1 for a, b in zip(first, last, strict=True)))


@contextmanager
def weights_stay() -> Iterator[None]:
    """Promise that nothing writes to a parameter between two kernels that are launched in the block."""
    token = WEIGHTS_STAY.set(True)
    try:
        yield
    finally:
        WEIGHTS_STAY.reset(token)


def takes(x: Tensor, weight: Tensor, whole: bool) -> bool:
    """Whether the kernel computes the product of `[M, K]` with a weight `[N, K]`, and faster than others.

    Weights that are not parameters may be what the kernel before makes, for which this one does not wait.

    Args:
        x: the rows.
        weight: of a linear layer.
        whole: whether the product itself is wanted, not parts of it.
    """
    rows, (outputs, inputs) = len(x), weight.shape
    return (
        0 < rows <= MOST_ROWS
        and min(outputs, inputs) >= LEAST
        and inputs % CHANNELS == 0
        and x.dtype == weight.dtype
        and weight.dtype in (torch.bfloat16, torch.float16)
        and capability(weight.device) == HOPPER
        and isinstance(weight, torch.nn.Parameter)
        and (whole or plan_for(outputs, inputs, blocks_for(rows).channels, whole).parts > 1)
        and all(each.is_contiguous() and each.data_ptr() % 16 == 0 for each in (x, weight))
        and has_triton()
        and _has_gluon()
    )


def _has_gluon() -> bool:
    from .triton_launch import GLUON_KNOWN

    return GLUON_KNOWN


def streamed_sums(x: Tensor, weight: Tensor) -> Tensor:
    """Parts of the product ``x W^T`` in float32, to be added up by who reads them.

    Args:
        x: `[M, K]`, contiguous, in the weight's dtype; `takes` M.
        weight: `[N, K]`.

    Returns:
        `[parts, M, N]`.
    """
    return _launch(x, weight, None, whole=False, gelu=False)


def streamed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """The linear layer ``x W^T + bias``, and its GELU, approximated by tanh; one rounding.

    Args:
        x: as `streamed_sums`.
        weight: as `streamed_sums`.
        bias: `[N]`.
        gelu: whether it is activated.

    Returns:
        `[M, N]`, in the weight's dtype.
    """
    return _launch(x, weight, bias, whole=True, gelu=gelu)[0]


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, whole: bool, gelu: bool) -> Tensor:
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from .gluon_product import product_kernel

    rows, inputs = x.shape
    outputs = len(weight)
    blocks = blocks_for(rows)
    plan = plan_for(outputs, inputs, blocks.channels, whole)
    dtype = weight.dtype if whole else torch.float32
    out = x.new_empty(1 if whole else plan.parts, rows, outputs, dtype=dtype)
    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    of_x, of_weight = (
        TensorDescriptor(each, list(each.shape), [inputs, 1], [taken, blocks.channels], layout)
        for each, taken in ((x, blocks.box), (weight, OUTPUTS))
    )
    with torch.cuda.device(weight.device):
        if not WEIGHTS_STAY.get():
            # What wrote to the parameter has ended before this begins.
            out.new_zeros(1)
        product_kernel[(plan.programs,)](
            of_x, of_weight, out if bias is None else bias.contiguous(), out, rows, outputs,
            plan.blocks, plan.units, plan.share, plan.parts, out.stride(0),
            OUTPUTS=OUTPUTS, ROWS=blocks.rows, CHANNELS=blocks.channels, BOX=blocks.box, BOXES=blocks.boxes,
            STAGES=blocks.stages, WHOLE=whole, BIAS=bias is not None, GELU=gelu,
            num_warps=4, maxnreg=REGISTERS, launch_pdl=True,
        )  # fmt: skip
    return out
