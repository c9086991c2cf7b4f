"""Entropy of attention with a mask, and of attention whose logits are at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_entropy import check_operands

# Elements of one tile of logits; three of them exist at a time.
_TILE = 2**22


@torch.library.custom_op("toprovar::logits_entropy", mutates_args=())
def logits_entropy(logits: Tensor, mean_heads: bool = True, first_key: int = 0) -> Tensor:
    """Return the entropy of every row of ``softmax(logits)`` (eq. 2).

    As :func:`attention_entropy`, for attention that computes its logits itself. Logits of minus infinity are
    keys that a row does not attend to; a row without any key has entropy 0. Statistics are fp32, or fp64 for
    fp64.

    Args:
        logits: ``[B, ..., Lq, Lk]``, floating point; what is between are heads.
        mean_heads: Average the entropies over all heads.
        first_key: Number of leading keys left out.

    Returns:
        Entropies in nats, float32, ``[B, Lq]`` if ``mean_heads`` else ``[B, ..., Lq]``.

    Raises:
        ValueError: Fewer than three dimensions, or no key is left.
    """
    if logits.dim() < 3 or not 0 <= first_key < logits.shape[-1]:
        raise ValueError(
            f"logits {list(logits.shape)}, first_key={first_key}: expected [B, ..., Lq, Lk], a key left"
        )
    tile = max(1, _TILE // max(1, logits[..., :1, :].numel()))
    rows = [_entropy(part[..., first_key:]) for part in logits.split(tile, dim=-2)]
    return _over_heads(torch.cat(rows, -1), mean_heads)


@logits_entropy.register_fake
def _(logits: Tensor, mean_heads: bool = True, first_key: int = 0) -> Tensor:
    shape = logits.shape[:-1]
    return logits.new_empty((shape[0], shape[-1]) if mean_heads else shape, dtype=torch.float32)


@torch.library.custom_op("toprovar::masked_attention_entropy", mutates_args=())
def masked_attention_entropy(
    q: Tensor, k: Tensor, mask: Tensor, scale: float, mean_heads: bool = True, first_key: int = 0
) -> Tensor:
    """Return the entropy of every row of ``softmax(scale q k^T + mask)`` (eq. 2).

    Args:
        q: Queries ``[B, H, Lq, E]``, floating point.
        k: Keys ``[B, Hk, Lk, E]`` with H a multiple of Hk; head h attends to key head ``h // (H / Hk)``.
        mask: Broadcasts to ``[B, H, Lq, Lk]``; added, or boolean with True where a query attends to a key.
        scale: Factor of the logits.
        mean_heads: Average the entropies over the heads.
        first_key: Number of leading keys left out.

    Returns:
        Entropies in nats, float32, ``[B, Lq]`` if ``mean_heads`` else ``[B, H, Lq]``; 0 for a row whose keys
        are all masked.

    Raises:
        ValueError: The shapes do not fit, or no key is left.
    """
    check_operands(q, k, first_key)
    batch, heads, queries, _ = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys = k[:, :, first_key:].to(dtype).repeat_interleave(heads // k.shape[1], dim=1).transpose(-1, -2)
    whole = mask.expand(batch, heads, queries, k.shape[2])[..., first_key:]
    tile = max(1, _TILE // (batch * heads * keys.shape[-1]))
    rows = []
    for row in range(0, queries, tile):
        logits = torch.matmul(q[:, :, row : row + tile].to(dtype), keys).mul_(scale)
        part = whole[:, :, row : row + tile]
        if mask.dtype == torch.bool:
            logits.masked_fill_(part.logical_not(), -torch.inf)
        else:
            logits.add_(part)
        rows.append(_entropy(logits))
    return _over_heads(torch.cat(rows, -1), mean_heads)


@masked_attention_entropy.register_fake
def _(
    q: Tensor, k: Tensor, mask: Tensor, scale: float, mean_heads: bool = True, first_key: int = 0
) -> Tensor:
    batch, heads, queries, _ = q.shape
    return q.new_empty((batch, queries) if mean_heads else (batch, heads, queries), dtype=torch.float32)


def _entropy(logits: Tensor) -> Tensor:
    """``H = log l - A / l`` with the row's maximum m, ``l = sum e^(s-m)`` and ``A = sum e^(s-m) (s-m)``."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    highest = logits.amax(-1, keepdim=True)
    shifted = logits - highest.masked_fill(highest == -torch.inf, 0.0)
    weights = shifted.exp()
    total = weights.sum(-1)
    # A masked key has weight 0 and the logarithm minus infinity, whose product must be 0.
    weighted = weights.mul_(shifted.clamp_min_(-1e4)).sum(-1)
    return torch.where(total > 0, total.log() - weighted / total, 0.0)


def _over_heads(entropy: Tensor, mean_heads: bool) -> Tensor:
    return (entropy.flatten(1, -2).mean(1) if mean_heads else entropy).float()
