"""Operator ``toprovar::attend_rows``: attention over a cache whose filling only the device knows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention_with_entropy import attention_with_entropy, empty_output


@torch.library.custom_op("toprovar::attend_rows", mutates_args=())
def attend_rows(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    filled: Tensor,
    most: int,
    scale: float,
    entropy: bool,
    own_keys: bool,
) -> tuple[Tensor, Tensor]:
    """Return ``softmax(scale q k^T) v`` over the first `filled` cached rows followed by the new ones.

    It reads the cache and leaves it alone, as a branch of ``torch.cond`` has to. On a CPU the keys are joined
    and given to stock attention, so that the result is that of a cache that was written first, bit for bit.
    Elsewhere nobody waits for `filled`: `most` rows are joined with the new ones, and a mask hides those that
    are not filled. They have to be finite.

    Args:
        q: Queries ``[B, H, Lq, E]``.
        k_cache: Keys ``[B, Hk, slots, E]`` with H a multiple of Hk.
        v_cache: Values ``[B, Hk, slots, Ev]``.
        k_rows: Keys of the scale that runs, ``[B, Hk, n, E]``.
        v_rows: Its values, ``[B, Hk, n, Ev]``.
        filled: Number of cached rows that count, int64, ``[]``, at most `most`.
        most: A bound of `filled` that is known without the device.
        scale: Factor of the logits.
        entropy: Whether to compute the entropies.
        own_keys: Entropies over the new rows only instead of all.

    Returns:
        The output ``[B, H, Lq, Ev]``, laid out as ``[B, Lq, H, Ev]`` in memory; the entropies in nats, mean
        of the heads, float32, ``[B, Lq]``, or ``[B, 0]`` where they were not asked for.
    """
    if filled.device.type == "cpu":
        known = int(filled)
        keys = torch.cat((k_cache[:, :, :known], k_rows), 2)
        values = torch.cat((v_cache[:, :, :known], v_rows), 2)
        if entropy:
            return attention_with_entropy(q, keys, values, scale, True, known if own_keys else 0)
        return _attention(q, keys, values, scale, None), _no_entropy(q)
    return attend_masked(q, k_cache, v_cache, k_rows, v_rows, filled, most, scale, entropy, own_keys)


@attend_rows.register_fake
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    filled: Tensor,
    most: int,
    scale: float,
    entropy: bool,
    own_keys: bool,
) -> tuple[Tensor, Tensor]:
    found = q.new_empty((q.shape[0], q.shape[2] if entropy else 0), dtype=torch.float32)
    return empty_output(q, v_rows), found


def attend_masked(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    filled: Tensor,
    most: int,
    scale: float,
    entropy: bool,
    own_keys: bool,
) -> tuple[Tensor, Tensor]:
    """As `attend_rows`, without reading `filled`."""
    keys = torch.cat((k_cache[:, :, :most], k_rows), 2)
    values = torch.cat((v_cache[:, :, :most], v_rows), 2)
    at = torch.arange(keys.shape[2], device=q.device)
    valid = (at < filled) | (at >= most)
    attended = _attention(q, keys, values, scale, valid.expand(q.shape[2], -1))
    if not entropy:
        return attended, _no_entropy(q)
    return attended, _masked_entropy(q, keys, scale, at >= most if own_keys else valid)


def _attention(q: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Stock attention in the layout of the output."""
    grouped = q.shape[1] != keys.shape[1]
    attended = F.scaled_dot_product_attention(q, keys, values, mask, scale=scale, enable_gqa=grouped)
    out = empty_output(q, values)
    return attended if attended.stride() == out.stride() else out.copy_(attended)


def _no_entropy(q: Tensor) -> Tensor:
    return q.new_empty((q.shape[0], 0), dtype=torch.float32)


def _masked_entropy(q: Tensor, keys: Tensor, scale: float, counted: Tensor) -> Tensor:
    """Entropies ``[B, Lq]`` over the keys where `counted` ``[Lk]`` holds, one head at a time."""
    shared = q.shape[1] // keys.shape[1]
    total = q.new_zeros((q.shape[0], q.shape[2]), dtype=torch.float32)
    for head in range(q.shape[1]):
        logits = scale * q[:, head].float() @ keys[:, head // shared].float().transpose(1, 2)
        shares = logits.masked_fill(~counted, -torch.inf).log_softmax(-1)
        total -= torch.where(counted, shares.exp() * shares, 0.0).sum(-1)
    return (total / q.shape[1]).clamp_min(0)
