"""Convolutional blocks of the image autoencoder, named as in official Infinity VAE checkpoints."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """A 2-D convolution whose parameters are stored under ``.conv``, as official checkpoints name them."""

    def __init__(
        self, channels: int, out: int, kernel: int = 3, stride: int = 1, padding: int | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2 if padding is None else padding)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, out, H', W']``."""
        return self.conv(x)


class Norm(nn.Module):
    """Group normalisation stored under ``.norm``: of 32, 24, 16, 8 groups the first that divides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = next((count for count in (32, 24, 16, 8) if channels % count == 0), 1)
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        return self.norm(x)


class ResnetBlock(nn.Module):
    """Norm, swish, 3x3 convolution, twice, beside a (projected) shortcut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = Norm(channels)
        self.conv1 = Conv(channels, out)
        self.norm2 = Norm(out)
        self.conv2 = Conv(out, out)
        self.nin_shortcut: nn.Module | None = Conv(channels, out, kernel=1) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, out, H, W]``."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Downsample(nn.Module):
    """Halve the sides by a strided 3x3 convolution, padded on the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, C, H/2, W/2]``."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the sides by nearest neighbour and a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, C, 2H, 2W]``."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """The two blocks at the lowest resolution (the official configuration has no attention here)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        return self.block_2(self.block_1(x))


class Level(nn.Module):
    """One resolution: residual blocks under ``.block`` and an optional change of resolution after them."""

    downsample: nn.Module | None
    upsample: nn.Module | None

    def __init__(self, channels: int, out: int, blocks: int, *, down: bool = False, up: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(channels if i == 0 else out, out) for i in range(blocks))
        self.downsample = Downsample(out) if down else None
        self.upsample = Upsample(out) if up else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, out, H', W']`` with sides halved, doubled or kept."""
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x if self.upsample is None else self.upsample(x)
