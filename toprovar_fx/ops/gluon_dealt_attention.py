"""Attention without entropies for Hopper, its tiles dealt out evenly to the multiprocessors, in Gluon.

A program computes tiles of 128 queries as in `gluon_attention`, one after another: its producer fetches for
the next while its consumers still compute the last. Of tiles that would leave multiprocessors idle at the end
the keys are dealt out in ranges; what each leaves is added up by `triton_merge`.

Tiles are numbered head by head, those that a head's queries do not fill last of all. A piece of work is one
of the first ``whole`` tiles, or a range of a later one; the ranges of a tile follow one another.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gluon_attention import attend_range, fetch_range, store_tile, tiles_in
from .gluon_barriers import partition_barrier, release
from .gluon_softmax import ROWS


@gluon.jit
def place_of(tile, every, queries):
    """(head, counted over all rows, and first query) of a tile."""
    full = queries // (2 * ROWS)
    ends = every * full
    if tile < ends:
        head = tile // full
        first = tile % full * (2 * ROWS)
    else:
        head = tile - ends
        first = full * (2 * ROWS)
    return head, first


@gluon.jit
def keys_of(piece, whole, ranges, keys, BLOCK_N: gl.constexpr):
    """(tile, which of its ranges, first key and end of the keys) of a piece of work."""
    if piece < whole:
        tile = piece
        part = piece * 0
        first = piece * 0
        end = keys
    else:
        tile = whole + (piece - whole) // ranges
        part = (piece - whole) % ranges
        dealt = (tiles_in(keys, BLOCK_N) + ranges - 1) // ranges * BLOCK_N
        first = part * dealt
        end = gl.minimum(first + dealt, keys)
    return tile, part, first, end


@gluon.jit
def produce(
    q, k, v, q_tiles, k_tiles, v_tiles, q_full, q_free, k_full, k_free, v_full, v_free,
    queries, keys, heads, heads_per_key, every, whole, ranges, pieces,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Role of the producer warp."""
    step = gl.to_tensor(0)
    done = gl.to_tensor(0)
    tile, _, first, end = keys_of(gl.program_id(0), whole, ranges, keys, BLOCK_N)
    every_head, row = place_of(tile, every, queries)
    # As `triton_chain.begin`: nothing is read before, and what is written follows from what comes in here.
    gdc_launch_dependents()
    gdc_wait()
    for piece in range(gl.program_id(0), pieces, gl.num_programs(0)):
        batch = every_head // heads
        head = every_head % heads
        for half in gl.static_range(2):
            slot = (done & 1) * 2 + half
            mbarrier.wait(q_free.index(slot), ((done >> 1) & 1) ^ 1)
            mbarrier.expect(q_full.index(slot), q.block_type.nbytes)
            at = [batch, head, row + half * ROWS, 0]
            tma.async_copy_global_to_shared(q, at, q_full.index(slot), q_tiles.index(slot))
        step = fetch_range(
            step, first, end, k, v, batch, head // heads_per_key,
            k_tiles, v_tiles, k_full, k_free, v_full, v_free, BLOCK_N, STAGES,
        )  # fmt: skip
        tile, _, first, end = keys_of(piece + gl.num_programs(0), whole, ranges, keys, BLOCK_N)
        every_head, row = place_of(tile, every, queries)
        done += 1


@gluon.jit
def store_part(parts, acc, peak, mass, at, rows, left, D: gl.constexpr, ROW: gl.constexpr, A: gl.constexpr):
    """Write the sums of 64 rows over one range of keys, as `triton_merge.merge_kernel` reads them.

    ``at`` is the first row's number among ``rows``; the first ``left`` are queries.
    """
    row = gl.expand_dims(gl.arange(0, ROWS, layout=gl.SliceLayout(1, A)), 1)
    column = gl.expand_dims(gl.arange(0, D, layout=gl.SliceLayout(0, A)), 0)
    gl.store(parts + at.to(gl.int64) * D + (row * D + column), acc, mask=row < left)
    peaks = parts + rows.to(gl.int64) * D + at
    inside = gl.arange(0, ROWS, layout=ROW)
    gl.store(peaks + inside, peak, mask=inside < left)
    gl.store(peaks + rows + inside, mass, mask=inside < left)


@gluon.jit
def consume(
    half: gl.constexpr, out, parts, q_tiles, k_tiles, v_tiles, q_full, q_free, k_full, k_free, v_full, v_free,
    turns, queries, keys, heads, every, whole, ranges, pieces, factor,
    D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Role of a consumer warpgroup: half of the queries of each tile."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16])
    A: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, S)
    step = gl.to_tensor(0)
    done = gl.to_tensor(0)
    for piece in range(gl.program_id(0), pieces, gl.num_programs(0)):
        tile, part, first, end = keys_of(piece, whole, ranges, keys, BLOCK_N)
        head, row = place_of(tile, every, queries)
        row += half * ROWS
        slot = (done & 1) * 2 + half
        q_tile = q_tiles.index(slot)
        acc = gl.full([ROWS, D], 0.0, gl.float32, A)
        peak = gl.full([ROWS], float("-inf"), gl.float32, ROW)
        mass = gl.full([ROWS], 0.0, gl.float32, ROW)
        mbarrier.wait(q_full.index(slot), (done >> 1) & 1)
        acc, peak, mass, _, step = attend_range(
            half, done, acc, peak, mass, mass, step, tiles_in(end - first, BLOCK_N), end - first,
            q_tile.reshape([ROWS, D]), k_tiles, v_tiles, k_full, k_free, v_full, v_free, turns, factor,
            out.dtype, D, BLOCK_N, STAGES, False, True, S, A, False,
        )  # fmt: skip
        if piece < whole:
            store_tile(out, acc, mass, q_tile, head // heads, head % heads, row, D, A)
        else:
            apart = (pieces - whole) // ranges
            at = (part * apart + tile - whole) * (2 * ROWS) + half * ROWS
            rows = ranges * apart * (2 * ROWS)
            store_part(parts, acc, peak * factor, mass, at, rows, queries - row, D, ROW, A)
        release(q_free, slot)
        done += 1


@gluon.jit(
    do_not_specialize=["queries", "keys", "heads", "heads_per_key", "every", "whole", "ranges", "pieces"]
)
def dealt_kernel(
    q, k, v, out, parts, queries, keys, heads, heads_per_key, every, whole, ranges, pieces, factor,
    D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Pieces ``i``, ``i + n``, ... for program ``i`` of ``n``; launched ahead (PDL).

    ``every`` is the number of heads of all batch rows; ``parts`` is as `triton_merge.empty_parts`.
    """
    q_tiles = gl.allocate_shared_memory(q.dtype, [4] + q.block_type.shape, q.layout)  # noqa: RUF005
    k_tiles = gl.allocate_shared_memory(k.dtype, [STAGES] + k.block_type.shape, k.layout)  # noqa: RUF005
    v_tiles = gl.allocate_shared_memory(v.dtype, [STAGES] + v.block_type.shape, v.layout)  # noqa: RUF005
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [4, 1], barriers)
    q_free = gl.allocate_shared_memory(gl.int64, [4, 1], barriers)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], barriers)
    for slot in gl.static_range(4):
        mbarrier.init(q_full.index(slot), count=1)
        mbarrier.init(q_free.index(slot), count=1)
    for half in gl.static_range(2):
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
                0, out, parts, q_tiles, k_tiles, v_tiles, q_full, q_free, k_full, k_free, v_full, v_free,
                turns, queries, keys, heads, every, whole, ranges, pieces, factor, D, BLOCK_N, STAGES,
            )),
            (consume, (
                1, out, parts, q_tiles, k_tiles, v_tiles, q_full, q_free, k_full, k_free, v_full, v_free,
                turns, queries, keys, heads, every, whole, ranges, pieces, factor, D, BLOCK_N, STAGES,
            )),
            (produce, (
                q, k, v, q_tiles, k_tiles, v_tiles, q_full, q_free, k_full, k_free, v_full, v_free,
                queries, keys, heads, heads_per_key, every, whole, ranges, pieces, BLOCK_N, STAGES,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
