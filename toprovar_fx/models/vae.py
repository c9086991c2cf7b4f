"""Image autoencoder of Infinity (FLUX-style convolutional VAE without attention) around a multi-scale BSQ."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError
from .bsq import BSQConfig, MultiScaleBSQ
from .configs import MOST_BITS, MOST_CHANNELS, MOST_LAYERS
from .sizes import check_whole
from .vae_blocks import Conv, Level, Middle, Norm

# Each but the first halves the sides.
MOST_LEVELS = 16


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder.

    Attributes:
        z_channels: latent channels, equal to the bits of one latent position.
        ch: channels of the finest level.
        encoder_mult, decoder_mult: channel multiple per level, fine to coarse; ``len - 1`` halvings.
        num_res_blocks: residual blocks per encoder level; a decoder level has one more.
        quantizer: configuration of the quantiser (default: `z_channels` bits, the scenes schedule).
    """

    z_channels: int
    ch: int = 128
    encoder_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    decoder_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    quantizer: BSQConfig | None = field(default=None)

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_whole(vars(self), z_channels=MOST_BITS, ch=MOST_CHANNELS, num_res_blocks=MOST_LAYERS)
        for name in ("encoder_mult", "decoder_mult"):
            multiples = getattr(self, name)
            known = isinstance(multiples, tuple) and 1 <= len(multiples) <= MOST_LEVELS
            if not known or not all(type(each) is int and 1 <= each <= MOST_LAYERS for each in multiples):
                expected = f"1 to {MOST_LEVELS} whole numbers of at least 1"
                raise OptionError(f"{name} {multiples!r}: expected {expected}")

    @property
    def factor(self) -> int:
        """Pixels per latent position along one side."""
        return int(2 ** (len(self.decoder_mult) - 1))

    @property
    def bsq(self) -> BSQConfig:
        """The quantiser configuration in force."""
        return self.quantizer if self.quantizer is not None else BSQConfig(self.z_channels)


VAE_CONFIGS: dict[str, VAEConfig] = {
    "infinity-2b": VAEConfig(z_channels=32),
    "infinity-8b": VAEConfig(
        z_channels=14,
        encoder_mult=(1, 2, 4, 4),
        decoder_mult=(1, 2, 4, 4),
        quantizer=BSQConfig(14, patchify=2),
    ),
    "scenes": VAEConfig(
        z_channels=16, ch=32, encoder_mult=(1, 1, 2, 4), decoder_mult=(1, 1, 2, 4), num_res_blocks=1
    ),
}


class Encoder(nn.Module):
    """Images to latents: a level per multiple, each but the last halving the sides."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in config.encoder_mult]
        self.conv_in = Conv(3, config.ch)
        self.down = nn.ModuleList(
            Level(before, width, config.num_res_blocks, down=level + 1 < len(widths))
            for level, (before, width) in enumerate(zip([config.ch, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = Norm(widths[-1])
        self.conv_out = Conv(widths[-1], config.z_channels)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W] -> [B, d, h, w]``."""
        hidden = self.conv_in(images)
        for level in self.down:
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(self.mid(hidden))))


class Decoder(nn.Module):
    """Latents to images; ``up[i]`` is the level of the i-th multiple, so the last one runs first."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in config.decoder_mult]
        self.conv_in = Conv(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(before, width, config.num_res_blocks + 1, up=level > 0)
            for level, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True))
        )
        self.norm_out = Norm(widths[0])
        self.conv_out = Conv(widths[0], 3)

    def forward(self, latent: Tensor) -> Tensor:
        """``[B, d, h, w] -> [B, 3, H, W]``, not clamped."""
        hidden = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class ImageVAE(nn.Module):
    """Encoder, quantiser and decoder under the parameter names of official Infinity VAE checkpoints.

    Args:
        config: sizes, for instance ``VAE_CONFIGS["scenes"]``.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = MultiScaleBSQ(config.bsq)

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1] to latents ``[B, d, H/f, W/f]``, not yet quantised."""
        return self.encoder(images)

    def decode(self, summed_codes: Tensor) -> Tensor:
        """Summed codes ``[B, d, h, w]`` to images ``[B, 3, H, W]`` clamped to [-1, 1]."""
        return self.decoder(summed_codes).clamp(-1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct images through the quantiser, without gradient to the encoder."""
        return self.decode(self.quantizer.encode(self.encode(images)).summed)
