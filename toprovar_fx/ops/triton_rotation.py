"""The kernel behind `rotated_qkv`, in plain Triton: any CUDA card, and the interpreter."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .triton_chain import begin, chained

# Channels that a program takes of each operand: 16 bytes for each of its 128 threads.
CHANNELS_PER_PROGRAM = 1024
LEAST_NORM = tl.constexpr(1e-12)


@triton.jit
def to_unit(x):
    """Rows ``[H, D]`` over their lengths, as `torch.nn.functional.normalize`; a NaN stays one."""
    length = tl.sqrt(tl.sum(x * x, 1))
    length = tl.where(length < LEAST_NORM, LEAST_NORM, length)
    return x / length[:, None]


@triton.jit
def rotate_pairs(x, cos, sin, HEADS: tl.constexpr, D: tl.constexpr):
    """Channels ``(2 m, 2 m + 1)`` of ``[H, D]`` rotated by the angles ``[D / 2]``."""
    even, odd = tl.split(tl.reshape(x, (HEADS, D // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, D))


# Lengths and offsets change from scale to scale: one compilation for all of them.
@triton.jit(do_not_specialize=["tokens", "start"])
def rotation_kernel(
    qkv, q_bias, v_bias, log_factor, cos, sin, keep, query, keys, values,
    tokens, start, max_log_factor,
    c_r, c_n, c_d, s_r, s_n, s_d, k_r, k_h, k_n, k_d, v_r, v_h, v_n, v_d,
    H: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, KEEP: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Some heads of one token of one row; the grid is ``[R L, H / HEADS]``. KEEP: where the token stands."""
    token = tl.program_id(0).to(tl.int64)
    row = token // tokens
    at = token % tokens
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    channels = tl.arange(0, D)
    pairs = tl.arange(0, D // 2)
    inside = heads[:, None] < H
    place = heads[:, None] * D + channels[None, :]
    position = at
    begin(CHAINED)
    if KEEP:
        position = tl.load(keep + token)
    source = qkv + token * (3 * H * D) + place
    half = query.dtype.element_ty

    # All that is read is read first: a store might write to it, for all that the compiler knows, and reading
    # is what takes long.
    cosine = tl.load(cos + row * c_r + position * c_n + pairs * c_d)[None, :]
    sine = tl.load(sin + row * s_r + position * s_n + pairs * s_d)[None, :]
    q = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(source + H * D, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(source + 2 * H * D, mask=inside, other=0.0).to(tl.float32)
    to_q = tl.load(q_bias + place, mask=inside, other=0.0).to(tl.float32)
    to_v = tl.load(v_bias + place, mask=inside, other=0.0)
    logs = tl.load(log_factor + heads, mask=heads < H, other=0.0).to(tl.float32)

    # A NaN stays one, unlike in minimum().
    logs = tl.where(logs > max_log_factor, max_log_factor, logs)
    q = rotate_pairs(to_unit(q + to_q) * tl.exp(logs)[:, None], cosine, sine, HEADS, D)
    tl.store(query + token * (H * D) + place, q.to(half), mask=inside)

    slot = start + at
    k = rotate_pairs(to_unit(k), cosine, sine, HEADS, D)
    to = keys + row * k_r + slot * k_n + heads[:, None] * k_h + channels[None, :] * k_d
    tl.store(to, k.to(half), mask=inside)

    # The bias is rounded before it is added, as in the model.
    v += to_v.to(half).to(tl.float32)
    to = values + row * v_r + slot * v_n + heads[:, None] * v_h + channels[None, :] * v_d
    tl.store(to, v.to(half), mask=inside)


def launch(
    qkv: Tensor, q_bias: Tensor, v_bias: Tensor, log_factor: Tensor, max_log_factor: float,
    cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, start: int, keep: Tensor | None, query: Tensor,
) -> None:  # fmt: skip
    """Run the kernel; shapes as `rotated_qkv`, whose result is ``query [R, L, H, D]``, contiguous."""
    rows, tokens, _, heads, width = qkv.shape
    qkv, q_bias, v_bias, log_factor = (x.contiguous() for x in (qkv, q_bias, v_bias, log_factor))
    # A table of one row serves all of them.
    tables = [step for x in (cos, sin) for step in (x.stride(0) * (len(x) > 1), x.stride(2), x.stride(3))]
    taken = heads_per_program(heads, width)
    grid = (rows * tokens, triton.cdiv(heads, taken))
    rotation_kernel[grid](
        qkv, q_bias, v_bias, log_factor, cos, sin, qkv if keep is None else keep.contiguous(), query, keys,
        values, tokens, start, max_log_factor, *tables, *keys.stride(), *values.stride(),
        H=heads, D=width, HEADS=taken, KEEP=keep is not None, num_warps=4, **chained(query.device),
    )  # fmt: skip


def heads_per_program(heads: int, width: int) -> int:
    """How many heads of this width a program takes."""
    most: int = triton.next_power_of_2(heads)
    return min(most, CHANNELS_PER_PROGRAM // width)
