"""Operator ``toprovar::attention_entropy``: entropy of attention rows without the attention matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Elements of one tile; two tiles exist at a time. On a CPU a tile has to stay in a core's second-level cache
# (0.5 MiB each); elsewhere few launches matter more, and both together take 32 MiB.
_CPU_TILE = 2**17
_TILE = 2**22
# Largest |q| |k| scale sqrt(E) of a group of rows whose logits are left in fp32 on a CPU.
_FP32_LOGITS = 128.0


@torch.library.custom_op("toprovar::attention_entropy", mutates_args=())
def attention_entropy(
    q: Tensor, k: Tensor, scale: float, mean_heads: bool = True, first_key: int = 0
) -> Tensor:
    """Return the entropy of every row of ``softmax(scale q k^T)`` (eq. 2).

    With ``s`` the logits of a row, ``m`` their maximum, reached at key ``a``,
    ``t = sum_{j != a} e^(s_j - m)`` and ``A = sum_j e^(s_j - m) (s_j - m)``, the entropy is
    ``H = log(1 + t) - A / (1 + t)``. Both terms are at least 0, so H is never negative; as t is kept apart
    from the 1, nothing is lost where H is near 0. Statistics are fp32 (fp64 for fp64 inputs) whatever the
    dtype of the inputs.

    What is left is the error of the logits. As ``dH = -sum_j p_j (log p_j + H) ds_j``, an error of at
    most d in every logit changes H by at most ``2 d H``: a relative error of 2 d. In fp32, d is about
    ``2e-8 sqrt(E) |q| |k| scale`` (measured). So on a CPU, a group of rows in which 2 d may exceed 5e-6
    gets its logits, and their distance to the maximum, in fp64; H then has a relative error below 5e-6
    even at logits of 100. On other devices logits are fp32.

    Rows are computed tile by tile in two buffers (a third for fp64 logits) that together take at most about
    32 MiB (one row of keys at least).

    Args:
        q: Queries ``[B, H, Lq, E]``, floating point.
        k: Keys ``[B, Hk, Lk, E]`` with H a multiple of Hk; head h attends to key head ``h // (H / Hk)``.
        scale: Factor of the logits. Logits have to be finite.
        mean_heads: Average the entropies over the heads.
        first_key: Number of leading keys left out, to restrict the entropy to the keys of the current scale.

    Returns:
        Entropies in nats, float32, ``[B, Lq]`` if ``mean_heads`` else ``[B, H, Lq]``.

    Raises:
        ValueError: The shapes do not fit, or no key is left.
    """
    check_operands(q, k, first_key)
    batch, heads, queries, width = q.shape
    groups, keys = batch * k.shape[1], k.shape[2] - first_key
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    # Heads that share keys are more rows of one group.
    rows_of = q.reshape(groups, heads // k.shape[1] * queries, width)
    keys_of = k[:, :, first_key:].reshape(groups, keys, width)
    entropy = _tiled_entropy(rows_of, keys_of, scale, dtype).view(batch, heads, queries)
    return (entropy.mean(1) if mean_heads else entropy).float()


@attention_entropy.register_fake
def _(q: Tensor, k: Tensor, scale: float, mean_heads: bool = True, first_key: int = 0) -> Tensor:
    batch, heads, queries, _ = q.shape
    return q.new_empty((batch, queries) if mean_heads else (batch, heads, queries), dtype=torch.float32)


def check_operands(q: Tensor, k: Tensor, first_key: int) -> None:
    """Raise ValueError where queries, keys and the range of keys do not fit."""
    if q.dim() != 4 or k.dim() != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q {list(q.shape)}, k {list(k.shape)}: expected [B, H, Lq, E] and [B, Hk, Lk, E], same B and E"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads: expected a multiple of the {k.shape[1]} key heads")
    if not 0 <= first_key < k.shape[2]:
        raise ValueError(f"first_key={first_key}: expected 0 to {k.shape[2] - 1} for {k.shape[2]} keys")


def _tiled_entropy(q: Tensor, k: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return the entropies ``[G, N]`` of queries ``[G, N, E]`` over keys ``[G, L, E]``, in ``dtype``."""
    groups, rows, _ = q.shape
    keys = k.shape[1]
    size = min(_TILE, _CPU_TILE * torch.get_num_threads()) if q.device.type == "cpu" else _TILE
    tile_rows = max(1, min(rows, size // keys))
    tile_groups = max(1, min(groups, size // (keys * max(rows, 1))))
    shifted, weights = q.new_empty(2, tile_groups * tile_rows * keys, dtype=dtype)
    entropy = q.new_empty(groups, rows, dtype=dtype)
    sharp = _sharp_groups(q, k, scale)
    for group in range(0, groups, tile_groups):
        these = slice(group, min(group + tile_groups, groups))
        exact = torch.float64 if any(sharp[these]) else dtype
        k_tile = k[these].to(exact).transpose(1, 2)
        for row in range(0, rows, tile_rows):
            q_tile = q[these, row : row + tile_rows].to(exact)
            shape = (*q_tile.shape[:2], keys)
            count = shape[0] * shape[1] * keys
            s, p = shifted[:count].view(shape), weights[:count].view(shape)
            logits = s if exact is dtype else s.new_empty(shape, dtype=exact)
            torch.baddbmm(logits, q_tile, k_tile, beta=0, alpha=scale, out=logits)
            top, at = logits.max(-1, keepdim=True)
            torch.sub(logits, top, out=s)
            torch.exp(s, out=p)
            tail = p.scatter_(-1, at, 0).sum(-1)
            weighted = p.mul_(s).sum(-1)
            torch.sub(tail.log1p(), weighted.div_(1 + tail), out=entropy[these, row : row + tile_rows])
    return entropy


def _sharp_groups(q: Tensor, k: Tensor, scale: float) -> list[bool]:
    """Whether the logits of each group may be too large for fp32; read from the device on a CPU alone."""
    if q.device.type != "cpu" or q.dtype == torch.float64 or q.numel() == 0:
        return [False] * len(q)
    longest = [x.flatten(1, -2).float().norm(dim=-1).amax(-1) for x in (q, k)]
    bound = longest[0] * longest[1] * abs(scale) * math.sqrt(q.shape[-1])
    # Not "above": NaN, of inputs that overflow, is sharp too.
    return [not value <= _FP32_LOGITS for value in bound.tolist()]
