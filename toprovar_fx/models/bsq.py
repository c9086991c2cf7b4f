"""Multi-scale residual binary spherical quantisation (BSQ, arXiv 2406.07548; residual form: 2412.04431).

A latent ``z`` is approximated by a sum over scales of upsampled codes, every component ``+-1/sqrt(d)``.
All that a transformer predicts are the signs, one bit per component.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ScheduleError
from ..schedules import Schedule

Sides = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class BSQConfig:
    """What a quantiser needs to know.

    Attributes:
        bits: code components ``d`` of one latent position.
        schedule: height and width of every scale in transformer tokens, coarse to fine.
        patchify: side of the square of latent positions that one token carries (2 for Infinity-8B, else 1).
    """

    bits: int
    schedule: Sides = Schedule.named("scenes").sides
    patchify: int = 1

    @property
    def token_bits(self) -> int:
        """Bits that one transformer token predicts."""
        return self.bits * self.patchify**2


class Encoding(NamedTuple):
    """What `MultiScaleBSQ.encode` returns.

    Attributes:
        bits: per scale the target bits, bool ``[B, L, d]``; with flips these are *not* what was summed.
        inputs: entry ``i`` is the transformer input of scale ``i + 1``, ``[B, L, d]`` in the dtype of ``z``.
        summed: sum of the (flipped) codes over the encoded scales, ``[B, d, h, w]``.
    """

    bits: list[Tensor]
    inputs: list[Tensor]
    summed: Tensor


class _Signs(nn.Module):
    """Holder of the one buffer that an official checkpoint stores for its quantiser (``lfq.mask``)."""

    mask: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.register_buffer("mask", 2 ** torch.arange(bits - 1, -1, -1))


class MultiScaleBSQ(nn.Module):
    """Residual quantiser over a schedule of scales; it has no learned parameter.

    Args:
        config: code width, schedule and patchification.
    """

    def __init__(self, config: BSQConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule: Sides = tuple(config.schedule)
        self.lfq = _Signs(config.bits)

    def set_schedule(self, schedule: Sides) -> None:
        """Use another schedule of token sides, coarse to fine, from now on."""
        self.schedule = tuple((int(h), int(w)) for h, w in schedule)

    def latent_side(self, scale: int) -> tuple[int, int]:
        """Height and width in latent positions of one scale (0-based; negative counts from the end).

        Raises:
            ScheduleError: the schedule has no such scale.
        """
        if not -len(self.schedule) <= scale < len(self.schedule):
            raise ScheduleError(f"scale {scale}: expected 0 to {len(self.schedule) - 1}")
        height, width = self.schedule[scale]
        return height * self.config.patchify, width * self.config.patchify

    def codes(self, bits: Tensor, scale: int) -> Tensor:
        """Turn token bits ``[B, L, token_bits]`` into codes ``[B, d, h, w]``.

        Bits are bool or integers and give float32, or 0 and 1 of a floating dtype, which is kept.
        """
        height, width = self.schedule[scale]
        value = bits if bits.is_floating_point() else bits.to(torch.float32)
        level = 1.0 / math.sqrt(self.config.bits)
        signed = (value * 2.0 - 1.0) * level
        # A channels-last view: CUDA resamples NCHW with one thread per position for the whole batch.
        grid = signed.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(grid, self.config.patchify) if self.config.patchify > 1 else grid

    def accumulate(self, summed: Tensor, bits: Tensor, scale: int) -> Tensor:
        """Add the codes of one scale to the running sum (reference dataflow, steps 9 to 11).

        Args:
            summed: ``[B, d, h, w]`` at the size of the last scale, in latent positions.
            bits: ``[B, L, token_bits]``.
            scale: 0-based scale index.

        Returns:
            A new tensor ``[B, d, h, w]``.
        """
        codes = self.codes(bits, scale).to(summed.dtype)
        return summed + _enlarge(codes, (summed.shape[-2], summed.shape[-1]))

    def next_input(self, summed: Tensor, scale: int) -> Tensor:
        """Input of scale ``scale + 1``: the running sum resampled to its size, ``[B, L, token_bits]``."""
        return self._tokens(_enlarge(summed, self.latent_side(scale + 1)))

    def encode(
        self,
        z: Tensor,
        schedule: Sides | None = None,
        flip_prob: float | Tensor = 0.0,
        generator: torch.Generator | None = None,
        scales: int | None = None,
    ) -> Encoding:
        """Quantise a latent scale by scale, with Infinity's bitwise self-correction when ``flip_prob > 0``.

        Every scale's target is the sign of the residual against what was *summed*; the summed bits are the
        target with each bit flipped with probability ``flip_prob``, so later targets learn to repair.

        Args:
            z: latent ``[B, d, h, w]``.
            schedule: token sides to use instead of the quantiser's own.
            flip_prob: one probability, or one per image ``[B]``.
            generator: source of the flips, on the device of ``z``.
            scales: encode only the first so many scales (the inputs then also cover only those).

        Returns:
            Bits, inputs and final sum; see `Encoding`.
        """
        if schedule is not None:
            other = MultiScaleBSQ(BSQConfig(self.config.bits, schedule, self.config.patchify))
            return other.encode(z, None, flip_prob, generator, scales)
        count = len(self.schedule) if scales is None else scales
        threshold = _flip_threshold(flip_prob, z)
        z = z.contiguous(memory_format=torch.channels_last)
        full = (z.shape[-2], z.shape[-1])
        summed = torch.zeros_like(z)
        targets: list[Tensor] = []
        inputs: list[Tensor] = []
        for scale in range(count):
            side = self.latent_side(scale)
            residual = z - summed
            if side != full:
                residual = F.interpolate(residual, size=side, mode="area")
            bits = self._tokens(residual) > 0
            targets.append(bits)
            if threshold is not None:
                noise = torch.rand(bits.shape, device=z.device, generator=generator)
                bits = bits ^ (noise < threshold)
            summed = self.accumulate(summed, bits, scale)
            if scale + 1 < count:
                inputs.append(self.next_input(summed, scale))
        return Encoding(targets, inputs, summed)

    def _tokens(self, latent: Tensor) -> Tensor:
        """``[B, d, h, w]`` latent positions to ``[B, L, token_bits]`` tokens."""
        if self.config.patchify > 1:
            latent = F.pixel_unshuffle(latent, self.config.patchify)
        return latent.flatten(2).transpose(1, 2)


def _enlarge(latent: Tensor, size: tuple[int, int]) -> Tensor:
    # Upstream interpolates [B, d, 1, h, w] trilinearly; with one frame that is plain bilinear.
    if (latent.shape[-2], latent.shape[-1]) == size:
        return latent
    return F.interpolate(latent, size=size, mode="bilinear", align_corners=False)


def _flip_threshold(flip_prob: float | Tensor, z: Tensor) -> Tensor | float | None:
    if isinstance(flip_prob, Tensor):
        return flip_prob.to(z.device, torch.float32).reshape(-1, 1, 1)
    return flip_prob if flip_prob > 0 else None
