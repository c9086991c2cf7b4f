"""Weights of a tile of logits, and what a consumer of `gluon_attention` makes of their sums."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .gluon_barriers import partition_barrier

NAT = gl.constexpr(2.0**40)
NAN_MARK = gl.constexpr(2**54)
NOTHING = gl.constexpr(-1e4)
# Rows of a warpgroup's matrix instruction.
ROWS = gl.constexpr(64)


@gluon.jit
def weigh(s, valid, peak, mass, moment, factor, MASKED: gl.constexpr, ENTROPY: gl.constexpr):
    """Weights of a tile of logits, and the sums with them: (weights, decay, peak, mass, moment)."""
    if MASKED:
        s = gl.where(valid, s, float("-inf"))
    higher = gl.maximum(peak, gl.max(s, 1))
    shift = higher * factor
    t = s * factor - gl.expand_dims(shift, 1)
    if MASKED:
        t = gl.where(valid, t, NOTHING)
    d = gl.maximum(peak * factor - shift, NOTHING)
    p = gl.exp2(t)
    decay = gl.exp2(d)
    if ENTROPY:
        moment = decay * (moment + d * mass) + gl.sum(p * t, 1)
    mass = decay * mass + gl.sum(p, 1)
    return p, decay, higher, mass, moment


@gluon.jit
def rescale(acc, decay, A: gl.constexpr):
    """Bring an output under the new peak."""
    return acc * gl.expand_dims(gl.convert_layout(decay, gl.SliceLayout(1, A)), 1)


@gluon.jit
def store_entropy(
    entropy, sums, heads_done, values, rows, inside, batch, head, tile, tiles, heads, queries,
    MEAN: gl.constexpr,
):  # fmt: skip
    """As `triton_attention.store_entropy`."""
    if MEAN:
        at = batch.to(gl.int64) * queries + rows
        fixed = gl.where(values == values, (values * NAT).to(gl.int64), NAN_MARK)
        gl.atomic_add(sums + at, fixed, mask=inside, sem="relaxed")
        partition_barrier()
        before = gl.atomic_add(heads_done + batch * tiles + tile, 1, sem="acq_rel")
        if before == heads - 1:
            partition_barrier()
            total = gl.atomic_add(sums + at, fixed * 0, mask=inside, sem="relaxed")
            mean = gl.where(total < NAN_MARK, total.to(gl.float32) * (1 / NAT) / heads, float("nan"))
            gl.store(entropy + at, mean, mask=inside)
    else:
        row = (batch * heads + head).to(gl.int64) * queries + rows
        gl.store(entropy + row, values, mask=inside)
