"""Self-attention and cross-attention of an Infinity block, under the official parameter names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .rope import Angles, rotate

# Takes q, k, v of the current tokens [R, H, L, head_dim] and returns the attended values, same shape.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

MAX_LOG_SCALE = math.log(100.0)


class CachedAttend:
    """Attention of one scale over everything cached so far, after writing its own K/V into the cache.

    No mask: a scale sees all earlier scales and all of itself.
    """

    def __init__(self, keys: Tensor, values: Tensor, start: int, end: int) -> None:
        """Use slots ``start .. end - 1`` of a layer's buffers ``[R, H, slots, head_dim]``."""
        self.keys = keys
        self.values = values
        self.start = start
        self.end = end

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store ``key`` and ``value``, attend over ``[0, end)``; all ``[R, H, L, head_dim]``."""
        self.keys[:, :, self.start : self.end] = key
        self.values[:, :, self.start : self.end] = value
        return F.scaled_dot_product_attention(
            query, self.keys[:, :, : self.end], self.values[:, :, : self.end], scale=1.0
        )


class BlockCausalAttend:
    """Attention of all scales at once (teacher forcing), each over the earlier scales and itself.

    The first scales are small, so they share one masked call; every later scale makes the very call that
    inference makes. A single masked call over all scales would spend most of its work on masked pairs.
    """

    def __init__(self, ends: tuple[int, ...], merged_tokens: int, device: torch.device) -> None:
        """Merge the scales that end within ``merged_tokens``; ``ends`` are the cumulative tokens."""
        merged = [end for end in ends if end <= merged_tokens]
        self.merged_end = merged[-1] if merged else 0
        self.later_ends = ends[len(merged) :]
        tokens = torch.arange(self.merged_end, device=device)
        scale_of = torch.bucketize(tokens, torch.tensor(merged, device=device), right=True)
        self.mask = scale_of[:, None] >= scale_of[None, :]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; all ``[R, H, L, head_dim]`` with the tokens of all scales."""
        parts = []
        start = self.merged_end
        if start:
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, :start],
                    key[:, :, :start],
                    value[:, :, :start],
                    attn_mask=self.mask,
                    scale=1.0,
                )
            )
        for end in self.later_ends:
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:end], key[:, :, :end], value[:, :, :end], scale=1.0
                )
            )
            start = end
        return torch.cat(parts, dim=2)


class SelfAttention(nn.Module):
    """Cosine self-attention: unit-length q and k, a learned factor per head, RoPE, softmax scale 1."""

    zero_k_bias: Tensor

    def __init__(self, width: int, heads: int) -> None:
        """Create the projections of ``width`` channels split into ``heads``."""
        super().__init__()
        self.heads = heads
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        # Never used (adding zero is no work worth doing), but official checkpoints hold it.
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """Attend.

        Args:
            x: ``[R, L, C]``, normalised and modulated.
            angles: rotation of these tokens.
            attend: what the queries see.

        Returns:
            ``[R, L, C]``.
        """
        rows, tokens, width = x.shape
        qkv = self.mat_qkv(x).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # Added after the product the biases fuse with what follows; as bias of the product they would need a
        # cat. Logits reach 100, so q and k stay in float32 until after the rotation and are rounded once.
        query = query.float() + self.q_bias.view(1, self.heads, 1, -1)
        value = value + self.v_bias.to(qkv.dtype).view(1, self.heads, 1, -1)
        factor = self.scale_mul_1H11.float().clamp_max(MAX_LOG_SCALE).exp()
        query = F.normalize(query, dim=-1) * factor
        key = F.normalize(key.float(), dim=-1)
        query = rotate(query, angles).to(qkv.dtype)
        key = rotate(key, angles).to(qkv.dtype)
        attended = attend(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(rows, tokens, width))


class CrossAttention(nn.Module):
    """Attention of image tokens over the text; the text's K/V come from ``text_kv``, once per prompt."""

    zero_k_bias: Tensor

    def __init__(self, width: int, heads: int) -> None:
        """Create the projections of ``width`` channels split into ``heads``."""
        super().__init__()
        self.heads = heads
        self.mat_q = nn.Linear(width, width)
        self.mat_kv = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def text_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Project text ``[R, T, C]`` to keys and values ``[R, H, T, head_dim]``."""
        return project_kv(text, self.mat_kv, self.v_bias, self.heads)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Attend from ``x [R, L, C]`` to text ``[R, H, T, head_dim]``, additive ``mask [R, 1, 1, T]``."""
        rows, tokens, width = x.shape
        query = self.mat_q(x).view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).reshape(rows, tokens, width))


class TextPool(nn.Module):
    """Attentive pooling of the text by one learned query per head."""

    zero_k_bias: Tensor

    def __init__(self, text_channels: int, width: int, heads: int) -> None:
        """Pool ``text_channels`` to ``width`` channels with ``heads`` heads."""
        super().__init__()
        self.heads = heads
        self.mat_q = nn.Parameter(torch.empty(1, heads, width // heads))
        self.mat_kv = nn.Linear(text_channels, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """Pool ``text [R, T, text_channels]`` under the additive ``mask [R, 1, 1, T]`` to ``[R, C]``."""
        key, value = project_kv(text, self.mat_kv, self.v_bias, self.heads)
        query = self.mat_q.to(key.dtype)[:, :, None].expand(len(text), -1, -1, -1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(attended.flatten(1))


def project_kv(text: Tensor, weight: nn.Linear, v_bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Project text ``[R, T, *]`` to keys (no bias) and values (with ``v_bias``), ``[R, H, T, head_dim]``."""
    rows, tokens, _ = text.shape
    key_value = weight(text).view(rows, tokens, 2, heads, -1).permute(2, 0, 3, 1, 4)
    key, value = key_value.unbind(0)
    return key.contiguous(), (value + v_bias.to(value.dtype).view(1, heads, 1, -1)).contiguous()
