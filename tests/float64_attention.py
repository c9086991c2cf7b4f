"""Attention and its entropies in float64, from the whole matrix: what the operators are compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def attended(
    q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0, first_key: int = 0
) -> tuple[Tensor, Tensor]:
    """Output [B, H, Lq, Ev], and entropies [B, H, Lq] in nats over the keys from `first_key` on."""
    k, v = (_for_heads(q, x) for x in (k, v))
    logits = scale * q.double() @ k.mT
    return logits.softmax(-1) @ v, _entropies(logits[..., first_key:])


def entropies(q: Tensor, k: Tensor, scale: float = 1.0, first_key: int = 0) -> Tensor:
    """Entropies [B, H, Lq] in nats over the keys from `first_key` on."""
    return _entropies(scale * q.double() @ _for_heads(q, k)[:, :, first_key:].mT)


def _for_heads(q: Tensor, x: Tensor) -> Tensor:
    """Keys or values [B, Hk, Lk, E], one copy per head of the queries."""
    return x.double().repeat_interleave(q.shape[1] // x.shape[1], 1)


def _entropies(logits: Tensor) -> Tensor:
    logp = torch.log_softmax(logits, -1)
    return -(logp.exp() * logp).sum(-1)
