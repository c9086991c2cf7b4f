"""The attention kernel with entropy accumulators, in plain Triton: cards from Ampere on, the interpreter.

With ``s`` the logits of a row in base 2 and ``peak`` their running maximum, three sums run together:
``mass = sum 2^(s - peak)``, ``moment = sum 2^(s - peak) (s - peak)`` and the output. When the peak moves by
``-d``, every term of the moment gets the factor ``2^d`` and the difference d: ``moment <- 2^d (moment + d
mass)``. At the end ``H = ln 2 (log2 mass - moment / mass)``.

The keys that count for the entropy come first, so that a row's entropy is known before the others are seen:
an entropy over the current scale's keys costs nothing more than one over all.
"""

from __future__ import annotations

import triton
import triton.language as tl

# One nat in the fixed-point sums over heads. Integers add up to the same number in any order, so the mean is
# deterministic; H is known to 1e-12 nats, and 2^8 heads of 2^4 nats stay below the mark of a NaN.
NAT = tl.constexpr(2.0**40)
NAN_MARK = tl.constexpr(2**54)
LN2 = tl.constexpr(0.6931471805599453)
# 2^-10000 is 0. Finite, because 0 times infinity is not 0.
NOTHING = tl.constexpr(-1e4)


@triton.jit
def load_tile(
    x, batch, head, start, stop, stride_b, stride_h, stride_n, stride_d,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, CHECK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Rows ``start ..`` of one head, ``[ROWS, BLOCK_D]``; 0 from row ``stop`` (if checked), column D on."""
    if TMA:
        tile = x.load([batch, head, start, 0]).reshape(ROWS, BLOCK_D)
    else:
        rows = tl.arange(0, ROWS)
        cols = tl.arange(0, BLOCK_D)
        base = x + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
        base += tl.cast(start, tl.int64) * stride_n
        pointers = base + rows[:, None] * stride_n + cols[None, :] * stride_d
        if CHECK:
            inside = (start + rows[:, None] < stop) & (cols[None, :] < D)
            tile = tl.load(pointers, mask=inside, other=0.0)
        elif D == BLOCK_D:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=cols[None, :] < D, other=0.0)
    return tile


@triton.jit
def add_keys(
    acc, peak, mass, moment, q, k, v, valid, factor,
    ENTROPY: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys more. ``factor`` is the softmax scale times log2 e; peak is in units of ``q k``."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        s = tl.where(valid[None, :], s, float("-inf"))
    higher = tl.maximum(peak, tl.max(s, 1))
    if EXACT:
        t = (s - higher[:, None]) * factor
        d = (peak - higher) * factor
    else:
        # One operation less per element. Shifts a whole row by the rounding of the product, which cancels.
        shift = higher * factor
        t = s * factor - shift[:, None]
        d = peak * factor - shift
    d = tl.maximum(d, NOTHING)
    if MASKED:
        t = tl.where(valid[None, :], t, NOTHING)
    p = tl.math.exp2(t)
    decay = tl.math.exp2(d)
    if ENTROPY:
        moment = decay * (moment + d * mass) + tl.sum(p * t, 1)
    mass = decay * mass + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return acc, higher, mass, moment


@triton.jit
def attend(
    acc, peak, mass, moment, q, k, v, first, stop, factor, batch, head,
    k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ENTROPY: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Keys ``first .. stop - 1``: whole tiles without a check, then what is left."""
    whole = first + (stop - first) // BLOCK_N * BLOCK_N
    for n in range(first, whole, BLOCK_N):
        k_tile = load_tile(k, batch, head, n, stop, k_b, k_h, k_n, k_d, D, BLOCK_N, BLOCK_D, False, TMA)
        v_tile = load_tile(v, batch, head, n, stop, v_b, v_h, v_n, v_d, D, BLOCK_N, BLOCK_D, False, TMA)
        acc, peak, mass, moment = add_keys(
            acc, peak, mass, moment, q, k_tile, v_tile, None, factor, ENTROPY, False, EXACT, PRECISION
        )
    if whole < stop:
        k_tile = load_tile(k, batch, head, whole, stop, k_b, k_h, k_n, k_d, D, BLOCK_N, BLOCK_D, True, TMA)
        v_tile = load_tile(v, batch, head, whole, stop, v_b, v_h, v_n, v_d, D, BLOCK_N, BLOCK_D, True, TMA)
        valid = whole + tl.arange(0, BLOCK_N) < stop
        acc, peak, mass, moment = add_keys(
            acc, peak, mass, moment, q, k_tile, v_tile, valid, factor, ENTROPY, True, EXACT, PRECISION
        )
    return acc, peak, mass, moment


@triton.jit
def store_entropy(
    entropy, sums, heads_done, values, rows, inside, batch, head, tile, tiles, heads, queries,
    MEAN: tl.constexpr,
):  # fmt: skip
    """Write a tile of entropies ``[B, H, Lq]``, or add them up so that the last head writes the mean.

    ``sums`` int64 ``[B, Lq]`` and ``heads_done`` int64 ``[B, tiles]`` start as 0.
    """
    if MEAN:
        at = batch.to(tl.int64) * queries + rows
        fixed = tl.where(values == values, (values * NAT).to(tl.int64), NAN_MARK)
        tl.atomic_add(sums + at, fixed, mask=inside, sem="relaxed")
        tl.debug_barrier()
        before = tl.atomic_add(heads_done + batch * tiles + tile, 1, sem="acq_rel")
        if before == heads - 1:
            tl.debug_barrier()
            total = tl.atomic_add(sums + at, tl.zeros_like(fixed), mask=inside, sem="relaxed")
            mean = tl.where(total < NAN_MARK, total.to(tl.float32) * (1 / NAT) / heads, float("nan"))
            tl.store(entropy + at, mean, mask=inside)
    else:
        row = (batch * heads + head).to(tl.int64) * queries + rows
        tl.store(entropy + row, values, mask=inside)


# Lengths change from scale to scale: one compilation for all of them.
@triton.jit(do_not_specialize=["queries", "keys", "first_key", "heads", "heads_per_key"])
def attention_kernel(
    q, k, v, out, entropy, sums, heads_done,
    queries, keys, first_key, heads, heads_per_key, factor,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, o_b, o_h, o_n,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ENTROPY: tl.constexpr, MEAN: tl.constexpr, REST: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head; the grid is ``[tiles, B H]``. REST: some keys are left out of H."""
    tile = tl.program_id(0)
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    key_head = head // heads_per_key
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < queries
    start = tile * BLOCK_M
    q_tile = load_tile(q, batch, head, start, queries, q_b, q_h, q_n, q_d, D, BLOCK_M, BLOCK_D, True, TMA)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    moment = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    acc, peak, mass, moment = attend(
        acc, peak, mass, moment, q_tile, k, v, first_key, keys, factor, batch, key_head,
        k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, D, BLOCK_N, BLOCK_D, ENTROPY, EXACT, PRECISION, TMA,
    )  # fmt: skip
    if ENTROPY:
        # A NaN stays one, unlike in maximum().
        nats = (tl.math.log2(mass) - moment / mass) * LN2
        nats = tl.where(nats < 0, 0.0, nats)
        store_entropy(
            entropy, sums, heads_done, nats, rows, inside,
            batch, head, tile, tl.num_programs(0), heads, queries, MEAN,
        )  # fmt: skip
    if REST:
        acc, peak, mass, moment = attend(
            acc, peak, mass, moment, q_tile, k, v, 0, first_key, factor, batch, key_head,
            k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, D, BLOCK_N, BLOCK_D, False, EXACT, PRECISION, TMA,
        )  # fmt: skip
    cols = tl.arange(0, BLOCK_D)
    to = out + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h + start.to(tl.int64) * o_n
    to += tl.arange(0, BLOCK_M)[:, None] * o_n + cols[None, :]
    value = (acc / mass[:, None]).to(out.dtype.element_ty)
    tl.store(to, value, mask=inside[:, None] & (cols[None, :] < D))
