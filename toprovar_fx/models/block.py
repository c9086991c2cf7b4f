"""The Infinity transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attend, CrossAttention, SelfAttention
from .configs import InfinityConfig
from .rope import Angles

NORM_EPS = 1e-6


class FeedForward(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        """Create ``width -> hidden -> width``."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[R, L, C]`` to ``[R, L, C]``."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward net, each added to the residual stream.

    ::

        gamma1, gamma2, scale1, scale2, shift1, shift2 = ada_gss + gss
        x = x + SA(LN(x) * (1 + scale1) + shift1) * gamma1
        x = x + CA(ca_norm(x), text)
        x = x + FFN(LN(x) * (1 + scale2) + shift2) * gamma2
    """

    def __init__(self, config: InfinityConfig) -> None:
        """Create one block of ``config``."""
        super().__init__()
        width = config.width
        self.sa = SelfAttention(width, config.heads)
        self.ca = CrossAttention(width, config.heads)
        self.ca_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.ffn = FeedForward(width, config.mlp_width)
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, width))

    def forward(
        self, x: Tensor, gss: Tensor, key: Tensor, value: Tensor, mask: Tensor, angles: Angles, attend: Attend
    ) -> Tensor:
        """Run the block.

        Args:
            x: residual stream ``[R, L, C]``.
            gss: modulation of the prompt, ``[R, 1, 6, C]``.
            key: text keys of this layer, ``[R, H, T, head_dim]``.
            value: text values of this layer, ``[R, H, T, head_dim]``.
            mask: additive text mask, ``[R, 1, 1, T]``.
            angles: rotation of these tokens.
            attend: what self-attention sees.

        Returns:
            The new residual stream ``[R, L, C]``.
        """
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (self.ada_gss + gss).unbind(2)
        x = x + self.sa(modulate(x, scale1, shift1), angles, attend) * gamma1
        x = x + self.ca(self.ca_norm(x), key, value, mask)
        return x + self.ffn(modulate(x, scale2, shift2)) * gamma2


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``LN(x) * (1 + scale) + shift`` for ``x [R, L, C]`` and ``scale``, ``shift`` ``[R, 1, C]``."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class BlockChunk(nn.Module):
    """A group of blocks: exists because official parameter names hold ``block_chunks.{c}.module.{j}``."""

    def __init__(self, blocks: list[Block]) -> None:
        """Hold ``blocks`` in order."""
        super().__init__()
        self.module = nn.ModuleList(blocks)
