"""The attention kernel with entropy accumulators for Hopper's own instructions, in Gluon (below Triton).

The sums are those of `triton_attention`. One program takes one tile of queries of one head and has three
roles: a producer warp fetches keys and values by the tensor memory accelerator, and two consumer warpgroups
take half of the queries each. A consumer issues the product with the next keys before it waits for that with
the last values, so that the exponentials of one tile run while the tensor cores work on two others.

Without entropies tiles are dealt out by `gluon_dealt_attention`, which computes a tile like this.
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

from .gluon_barriers import partition_barrier, release
from .gluon_softmax import ROWS, rescale, store_entropy, weigh

LN2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def tiles_in(keys, BLOCK_N: gl.constexpr):
    """Number of tiles that hold ``keys`` keys."""
    return (keys + BLOCK_N - 1) // BLOCK_N


@gluon.jit
def fetch_range(
    step, first, stop, k, v, batch, head, k_tiles, v_tiles, k_full, k_free, v_full, v_free,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Fetch keys ``first .. stop - 1``, the last tile (which may be ragged) first."""
    for n in range(tiles_in(stop - first, BLOCK_N) - 1, -1, -1):
        stage = step % STAGES
        phase = (step // STAGES) & 1
        at = first + n * BLOCK_N
        mbarrier.wait(k_free.index(stage), phase ^ 1)
        mbarrier.expect(k_full.index(stage), k.block_type.nbytes)
        tma.async_copy_global_to_shared(k, [batch, head, at, 0], k_full.index(stage), k_tiles.index(stage))
        mbarrier.wait(v_free.index(stage), phase ^ 1)
        mbarrier.expect(v_full.index(stage), v.block_type.nbytes)
        tma.async_copy_global_to_shared(v, [batch, head, at, 0], v_full.index(stage), v_tiles.index(stage))
        step += 1
    return step


@gluon.jit
def produce(
    q, k, v, q_tiles, k_tiles, v_tiles, q_full, k_full, k_free, v_full, v_free,
    batch, head, key_head, tile, first_key, keys,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, REST: gl.constexpr,
):  # fmt: skip
    """Role of the producer warp."""
    for half in gl.static_range(2):
        mbarrier.expect(q_full.index(half), q.block_type.nbytes)
        row = (tile * 2 + half) * ROWS
        tma.async_copy_global_to_shared(q, [batch, head, row, 0], q_full.index(half), q_tiles.index(half))
    step = fetch_range(
        gl.to_tensor(0), first_key, keys, k, v, batch, key_head,
        k_tiles, v_tiles, k_full, k_free, v_full, v_free, BLOCK_N, STAGES,
    )  # fmt: skip
    if REST:
        fetch_range(
            step, 0, first_key, k, v, batch, key_head, k_tiles, v_tiles, k_full, k_free, v_full, v_free,
            BLOCK_N, STAGES,
        )  # fmt: skip


@gluon.jit
def attend_range(
    half: gl.constexpr, before, acc, peak, mass, moment, step, count, keys,
    q_tile, k_tiles, v_tiles, k_full, k_free, v_full, v_free, turns, factor, dtype: gl.constexpr,
    D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HOLD: gl.constexpr, TURNS: gl.constexpr,
    S: gl.constexpr, A: gl.constexpr, ENTROPY: gl.constexpr,
):  # fmt: skip
    """``keys`` keys in ``count`` tiles, in the order of `fetch_range`; ``before``: ranges that came first."""
    P: gl.constexpr = gl.DotOperandLayout(0, A, 2)
    zeros = gl.full([ROWS, BLOCK_N], 0.0, gl.float32, S)
    stage = step % STAGES
    phase = (step // STAGES) & 1
    mbarrier.wait(k_full.index(stage), phase)
    k_tile = k_tiles.index(stage).reshape([BLOCK_N, D]).permute((1, 0))
    token = warpgroup_mma(q_tile, k_tile, zeros, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=(token,))
    release(k_free, stage)
    columns = (count - 1) * BLOCK_N + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, S))
    valid = gl.expand_dims(columns < keys, 0)
    p, decay, peak, mass, moment = weigh(s, valid, peak, mass, moment, factor, True, ENTROPY)
    acc = rescale(acc, decay, A)
    weights = gl.convert_layout(p.to(dtype), P)
    for _ in range(1, count):
        last_stage = stage
        last_phase = phase
        step += 1
        stage = step % STAGES
        phase = (step // STAGES) & 1
        mbarrier.wait(k_full.index(stage), phase)
        if TURNS:
            # The other consumer's products come first; they run while this one takes exponentials.
            mbarrier.wait(turns.index(half), ((step - 1 - before) & 1) ^ (1 - half))
        k_tile = k_tiles.index(stage).reshape([BLOCK_N, D]).permute((1, 0))
        s_token = warpgroup_mma(q_tile, k_tile, zeros, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(last_stage), last_phase)
        v_tile = v_tiles.index(last_stage).reshape([BLOCK_N, D])
        acc_token = warpgroup_mma(weights, v_tile, acc, is_async=True)
        if TURNS:
            mbarrier.arrive(turns.index(1 - half), count=1)
        s = warpgroup_mma_wait(1, deps=(s_token,))
        release(k_free, stage)
        p, decay, peak, mass, moment = weigh(s, None, peak, mass, moment, factor, False, ENTROPY)
        if HOLD:
            # The assembler moves the exponentials behind the wait that follows, where they would overlap with
            # nothing. A branch that depends on their sum (never taken: no sum is infinite) keeps them here.
            mass = gl.inline_asm_elementwise(
                "{ .reg .pred p; setp.eq.f32 p, $1, 0f7F800000; @p nanosleep.u32 1; mov.b32 $0, $1; }",
                "=f,f", [mass], dtype=gl.float32, is_pure=False, pack=1,
            )  # fmt: skip
        acc = warpgroup_mma_wait(0, deps=(acc_token,))
        release(v_free, last_stage)
        acc = rescale(acc, decay, A)
        weights = gl.convert_layout(p.to(dtype), P)
    mbarrier.wait(v_full.index(stage), phase)
    v_tile = v_tiles.index(stage).reshape([BLOCK_N, D])
    acc_token = warpgroup_mma(weights, v_tile, acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=(acc_token,))
    release(v_free, stage)
    return acc, peak, mass, moment, step + 1


@gluon.jit
def store_tile(out, acc, mass, q_tile, batch, head, row, D: gl.constexpr, A: gl.constexpr):
    """Write 64 rows of the output; the queries are done with, and it leaves from their place."""
    acc = acc / gl.expand_dims(gl.convert_layout(mass, gl.SliceLayout(1, A)), 1)
    q_tile.reshape([ROWS, D]).store(acc.to(out.dtype))
    fence_async_shared()
    partition_barrier()
    tma.async_copy_shared_to_global(out, [batch, head, row, 0], q_tile)
    tma.store_wait(0)


@gluon.jit
def consume(
    half: gl.constexpr, out, entropy, sums, heads_done,
    q_tiles, k_tiles, v_tiles, q_full, k_full, k_free, v_full, v_free, turns,
    batch, head, tile, tiles, queries, keys, first_key, heads, factor,
    D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HOLD: gl.constexpr, TURNS: gl.constexpr,
    ENTROPY: gl.constexpr, MEAN: gl.constexpr, REST: gl.constexpr,
):  # fmt: skip
    """Role of a consumer warpgroup."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16])
    A: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, S)
    dtype: gl.constexpr = out.dtype
    q_tile = q_tiles.index(half).reshape([ROWS, D])
    acc = gl.full([ROWS, D], 0.0, gl.float32, A)
    peak = gl.full([ROWS], float("-inf"), gl.float32, ROW)
    mass = gl.full([ROWS], 0.0, gl.float32, ROW)
    moment = gl.full([ROWS], 0.0, gl.float32, ROW)
    mbarrier.wait(q_full.index(half), 0)
    acc, peak, mass, moment, step = attend_range(
        half, 0, acc, peak, mass, moment,
        gl.to_tensor(0), tiles_in(keys - first_key, BLOCK_N), keys - first_key,
        q_tile, k_tiles, v_tiles, k_full, k_free, v_full, v_free, turns, factor, dtype,
        D, BLOCK_N, STAGES, HOLD, TURNS, S, A, ENTROPY,
    )  # fmt: skip
    if ENTROPY:
        rows = (tile * 2 + half) * ROWS + gl.arange(0, ROWS, layout=ROW)
        nats = (gl.log2(mass) - moment / mass) * LN2
        nats = gl.where(nats < 0, 0.0, nats)
        store_entropy(
            entropy, sums, heads_done, nats, rows, rows < queries,
            batch, head, tile * 2 + half, tiles * 2, heads, queries, MEAN,
        )  # fmt: skip
    if REST:
        acc, peak, mass, moment, step = attend_range(
            half, 1, acc, peak, mass, moment, step, tiles_in(first_key, BLOCK_N), first_key,
            q_tile, k_tiles, v_tiles, k_full, k_free, v_full, v_free, turns, factor, dtype,
            D, BLOCK_N, STAGES, HOLD, TURNS, S, A, False,
        )  # fmt: skip
    store_tile(out, acc, mass, q_tiles.index(half), batch, head, (tile * 2 + half) * ROWS, D, A)


@gluon.jit(do_not_specialize=["queries", "keys", "first_key", "heads", "heads_per_key"])
def hopper_kernel(
    q, k, v, out, entropy, sums, heads_done, queries, keys, first_key, heads, heads_per_key, factor,
    D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HOLD: gl.constexpr, TURNS: gl.constexpr,
    ENTROPY: gl.constexpr, MEAN: gl.constexpr, REST: gl.constexpr,
):  # fmt: skip
    """One tile of 128 queries of one head; grid ``[tiles, B H]``. REST: some keys are left out of H."""
    tile = gl.program_id(0)
    batch = gl.program_id(1) // heads
    head = gl.program_id(1) % heads
    tiles = gl.num_programs(0)
    q_tiles = gl.allocate_shared_memory(q.dtype, [2] + q.block_type.shape, q.layout)  # noqa: RUF005
    k_tiles = gl.allocate_shared_memory(k.dtype, [STAGES] + k.block_type.shape, k.layout)  # noqa: RUF005
    v_tiles = gl.allocate_shared_memory(v.dtype, [STAGES] + v.block_type.shape, v.layout)  # noqa: RUF005
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], barriers)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], barriers)
    for half in gl.static_range(2):
        mbarrier.init(q_full.index(half), count=1)
        mbarrier.init(turns.index(half), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=2)
        mbarrier.init(v_free.index(stage), count=2)
    fence_async_shared()
    partition_barrier()
    gl.warp_specialize(
        [
            (consume, (
                0, out, entropy, sums, heads_done,
                q_tiles, k_tiles, v_tiles, q_full, k_full, k_free, v_full, v_free, turns,
                batch, head, tile, tiles, queries, keys, first_key, heads, factor,
                D, BLOCK_N, STAGES, HOLD, TURNS, ENTROPY, MEAN, REST,
            )),
            (consume, (
                1, out, entropy, sums, heads_done,
                q_tiles, k_tiles, v_tiles, q_full, k_full, k_free, v_full, v_free, turns,
                batch, head, tile, tiles, queries, keys, first_key, heads, factor,
                D, BLOCK_N, STAGES, HOLD, TURNS, ENTROPY, MEAN, REST,
            )),
            (produce, (
                q, k, v, q_tiles, k_tiles, v_tiles, q_full, k_full, k_free, v_full, v_free,
                batch, head, head // heads_per_key, tile, first_key, keys, BLOCK_N, STAGES, REST,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
