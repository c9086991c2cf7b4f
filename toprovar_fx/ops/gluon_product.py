"""The kernel of `streamed_product`, for Hopper, in Gluon (below Triton).

A product of few rows does little but read its weight. Launched before the kernel that makes its inputs has
ended (programmatic dependent launch), a program fetches as much of its share of the weight as shared memory
holds, then waits for that kernel, and for nothing else: memory is read while the last kernel still computes.

A producer warp fetches by the tensor memory accelerator, the other warps multiply. The weight is the operand
with 64 rows of Hopper's instruction, so that few tokens are no more than its few columns.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gluon_barriers import partition_barrier, release


@gluon.jit
def fetch_weight(w, unit, stage, w_tiles, full, blocks, OUTPUTS: gl.constexpr, CHANNELS: gl.constexpr):
    """Fetch a block of the weight."""
    at = [unit // blocks * OUTPUTS, unit % blocks * CHANNELS]
    tma.async_copy_global_to_shared(w, at, full.index(stage), w_tiles.index(stage))


@gluon.jit
def fetch_inputs(
    x, unit, stage, x_tiles, full, blocks, CHANNELS: gl.constexpr, BOX: gl.constexpr, BOXES: gl.constexpr
):
    """Fetch the rows' inputs to a block of the weight; boxes of rows that are not there would cost time."""
    for box in gl.static_range(BOXES):
        at = [box * BOX, unit % blocks * CHANNELS]
        to = x_tiles.index(stage).slice(box * BOX, BOX, 0)
        tma.async_copy_global_to_shared(x, at, full.index(stage), to)


@gluon.jit
def produce(
    x, w, x_tiles, w_tiles, full, free, first, end, blocks, OUTPUTS: gl.constexpr, CHANNELS: gl.constexpr,
    BOX: gl.constexpr, BOXES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Role of the producer warp."""
    size: gl.constexpr = w.block_type.nbytes + BOXES * x.block_type.nbytes
    ahead = gl.minimum(end - first, STAGES)
    for step in range(0, ahead):
        mbarrier.expect(full.index(step), size)
        fetch_weight(w, first + step, step, w_tiles, full, blocks, OUTPUTS, CHANNELS)
    # Here the kernel before has ended, and what it wrote can be seen.
    gdc_wait()
    for step in range(0, ahead):
        fetch_inputs(x, first + step, step, x_tiles, full, blocks, CHANNELS, BOX, BOXES)
    for step in range(ahead, end - first):
        stage = step % STAGES
        mbarrier.wait(free.index(stage), ((step // STAGES) & 1) ^ 1)
        mbarrier.expect(full.index(stage), size)
        fetch_weight(w, first + step, stage, w_tiles, full, blocks, OUTPUTS, CHANNELS)
        fetch_inputs(x, first + step, stage, x_tiles, full, blocks, CHANNELS, BOX, BOXES)


@gluon.jit
def gelu(x):
    """GELU, approximated by tanh: ``x (1 + tanh(y)) / 2`` is ``x (1 - 1 / (exp(2 y) + 1))``."""
    inner = x * (0.7978845608028654 + 0.035677408136300125 * x * x)
    return x * (1.0 - 1.0 / (gl.exp2(inner * 2.8853900817779268) + 1.0))


@gluon.jit
def multiply(
    out, bias, x_tiles, w_tiles, full, free, first, end, blocks, share, parts, part, rows, outputs,
    OUTPUTS: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr, WHOLE: gl.constexpr,
    BIAS: gl.constexpr, GELU: gl.constexpr,
):  # fmt: skip
    """Role of the other warps."""
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, ROWS, 16])
    unit = first
    while unit < end:
        tile = unit // blocks
        stop = gl.minimum((tile + 1) * blocks, end)
        acc = gl.full([OUTPUTS, ROWS], 0.0, gl.float32, L)
        for u in range(unit, stop):
            stage = (u - first) % STAGES
            mbarrier.wait(full.index(stage), ((u - first) // STAGES) & 1)
            inputs = x_tiles.index(stage).permute((1, 0))
            token = warpgroup_mma(w_tiles.index(stage), inputs, acc, use_acc=u > unit, is_async=True)
            acc = warpgroup_mma_wait(1, deps=(token,))
            if u > unit:
                release(free, (u - 1 - first) % STAGES)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        release(free, (stop - 1 - first) % STAGES)
        n = tile * OUTPUTS + gl.expand_dims(gl.arange(0, OUTPUTS, layout=gl.SliceLayout(1, L)), 1)
        m = gl.expand_dims(gl.arange(0, ROWS, layout=gl.SliceLayout(0, L)), 0)
        inside = (n < outputs) & (m < rows)
        to = out + (m * outputs + n)
        if WHOLE:
            if BIAS:
                acc += gl.load(bias + n, mask=n < outputs, other=0.0).to(gl.float32)
            if GELU:
                acc = gelu(acc)
            gl.store(to, acc.to(out.dtype.element_ty), mask=inside)
        else:
            own = gl.program_id(0) - tile * blocks // share
            gl.store(to + own * part, acc, mask=inside)
            if stop == (tile + 1) * blocks:
                # Fewer programs than elsewhere share this tile.
                nothing = gl.full([OUTPUTS, ROWS], 0.0, gl.float32, L)
                for other in range(own + 1, parts):
                    gl.store(to + other * part, nothing, mask=inside)
        unit = stop


@gluon.jit(do_not_specialize=["rows", "outputs", "blocks", "units", "share", "parts", "part"])
def product_kernel(
    x, w, bias, out, rows, outputs, blocks, units, share, parts, part,
    OUTPUTS: gl.constexpr, ROWS: gl.constexpr, CHANNELS: gl.constexpr, BOX: gl.constexpr,
    BOXES: gl.constexpr, STAGES: gl.constexpr, WHOLE: gl.constexpr, BIAS: gl.constexpr, GELU: gl.constexpr,
):  # fmt: skip
    """Units ``share i .. share (i + 1) - 1`` of ``W x^T``, for program ``i``.

    A unit is a block of CHANNELS channels of a tile of OUTPUTS outputs; a tile has ``blocks`` of them, one
    after another. WHOLE: programs have whole tiles, and ``out``, `[rows, outputs]`, is what they are. Else
    it is `[parts, rows, outputs]` float32, in the order of the programs.
    """
    # What comes next may be launched; it waits for the end of this kernel, as this one does for the last.
    gdc_launch_dependents()
    first = gl.program_id(0) * share
    end = gl.minimum(first + share, units)
    x_tiles = gl.allocate_shared_memory(x.dtype, [STAGES, ROWS, CHANNELS], x.layout)
    w_tiles = gl.allocate_shared_memory(w.dtype, [STAGES, OUTPUTS, CHANNELS], w.layout)
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    fence_async_shared()
    partition_barrier()
    gl.warp_specialize(
        [
            (multiply, (
                out, bias, x_tiles, w_tiles, full, free, first, end, blocks, share, parts, part,
                rows, outputs, OUTPUTS, ROWS, STAGES, WHOLE, BIAS, GELU,
            )),
            (produce, (
                x, w, x_tiles, w_tiles, full, free, first, end, blocks,
                OUTPUTS, CHANNELS, BOX, BOXES, STAGES,
            )),
        ],
        [1],
        [24],
    )  # fmt: skip
