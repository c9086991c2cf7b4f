"""Sizes and defaults of the Infinity transformers the package knows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import OptionError, nearest
from .sizes import check_finite, check_whole

# Far beyond any model: what a damaged file says must not be built for minutes.
MOST_LAYERS = 1024
MOST_CHANNELS = 1 << 17
MOST_BITS = 4096
MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class InfinityConfig:
    """Shape of an Infinity transformer and its sampling defaults.

    Attributes:
        depth: transformer blocks.
        width: channels ``C`` of the residual stream.
        heads: attention heads ``H``; ``width / heads`` must be divisible by 4 for the two-dimensional RoPE.
        bits: bits per token as the transformer sees them; the head emits two logits each.
        text_channels: channels of the text features.
        text_maxlen: longest text in tokens; also the length of the learned unconditional text.
        block_chunks: groups into which the checkpoint keys split the blocks.
        text_pool_heads: heads of the attentive text pool.
        rope_grid: longer side of the grid on which every scale's positions are placed, unless the schedule
            has one.
        text_multiple: text is padded to a multiple of this many tokens, so that few text shapes are ever
            compiled.
        mlp_ratio: hidden width of the feed-forward net over ``width``.
        patchify: True if a token is a 2 x 2 patch of latent pixels with ``bits / 4`` bits each (Infinity-8B).
        levels: rows of the scale embedding, the largest number of scales.
        cfg: default classifier-free guidance; 1 switches it off.
        tau: default temperature of the bit logits.
        top_p: default nucleus of the bit choice.
    """

    depth: int
    width: int
    heads: int
    bits: int
    text_channels: int
    text_maxlen: int
    block_chunks: int
    text_pool_heads: int
    rope_grid: int
    text_multiple: int = 8
    mlp_ratio: float = 4.0
    patchify: bool = False
    levels: int = 15
    cfg: float = 3.0
    tau: float = 1.0
    top_p: float = 0.97

    def __post_init__(self) -> None:
        """Check the numbers, and that the sizes divide each other."""
        values = vars(self)
        check_whole(
            values, depth=MOST_LAYERS, width=MOST_CHANNELS, bits=MOST_BITS, text_channels=MOST_CHANNELS
        )
        check_whole(values, heads=self.width, text_pool_heads=self.width, block_chunks=self.depth)
        check_whole(values, text_maxlen=MOST_TOKENS, text_multiple=MOST_TOKENS, levels=MOST_LAYERS)
        check_whole(values, rope_grid=MOST_TOKENS)
        check_finite(values, mlp_ratio=MOST_LAYERS, cfg=math.inf, tau=math.inf, top_p=1.0)
        if not isinstance(self.patchify, bool):
            raise OptionError(f"patchify {self.patchify!r}: expected True or False")
        if self.width % self.heads or self.head_dim % 4:
            raise OptionError(
                f"width {self.width} with {self.heads} heads: expected head channels in multiples of 4"
            )
        if self.width % self.text_pool_heads:
            raise OptionError(
                f"text_pool_heads {self.text_pool_heads}: expected a divisor of width {self.width}"
            )
        if self.depth % self.block_chunks:
            raise OptionError(f"block_chunks {self.block_chunks}: expected a divisor of depth {self.depth}")
        if self.patchify and self.bits % 4:
            raise OptionError(f"bits {self.bits}: expected a multiple of 4 when tokens are 2 x 2 patches")

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        """Hidden channels of the feed-forward net."""
        return round(self.width * self.mlp_ratio)

    @property
    def latent_bits(self) -> int:
        """Bits per latent pixel, the channels of the image autoencoder's latent."""
        return self.bits // 4 if self.patchify else self.bits


_INFINITY_2B = InfinityConfig(
    depth=32,
    width=2048,
    heads=16,
    bits=32,
    text_channels=2048,
    text_maxlen=512,
    block_chunks=8,
    text_pool_heads=16,
    rope_grid=64,
    text_multiple=128,
    cfg=4.0,
)
CONFIGS = {
    "infinity-2b": _INFINITY_2B,
    "infinity-8b": replace(_INFINITY_2B, depth=40, width=3584, heads=28, bits=56, patchify=True, cfg=3.0),
    "scenes": InfinityConfig(
        depth=14,
        width=256,
        heads=8,
        bits=16,
        text_channels=256,
        text_maxlen=24,
        block_chunks=1,
        text_pool_heads=8,
        rope_grid=32,
        text_multiple=24,
    ),
}


def config_named(name: str) -> InfinityConfig:
    """Return the configuration called ``name``.

    Raises:
        OptionError: there is none; the message names the nearest.
    """
    if name not in CONFIGS:
        close = nearest(name, CONFIGS)
        hint = f"; did you mean {close!r}?" if close else ""
        raise OptionError(f"unknown model {name!r}: expected one of {sorted(CONFIGS)}{hint}")
    return CONFIGS[name]
