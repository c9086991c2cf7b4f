"""Choice of bits: guidance, temperature, nucleus, and noise that is a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from .errors import SeedError
from .schedules import Schedule

MAX_SEED = 2**63 - 1

# Odd constants of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64

# Fields of the counter that is mixed with the seed: bit | token | scale, 12 + 36 + 16 bits.
_TOKEN_SHIFT = 12
_SCALE_SHIFT = 48


def seed_tensor(seed: int | Sequence[int], images: int, device: torch.device | str | None = None) -> Tensor:
    """Return one seed per image, ``[B]`` int64: image i of a single seed gets ``seed + i``.

    Raises:
        SeedError: a seed is no integer in ``0 .. 2**63 - 1``, or their number is not ``images``.
    """
    given = list(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else [seed]
    for value in given:
        if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= value <= MAX_SEED:
            raise SeedError(f"seed {value!r}: expected an integer in 0 .. {MAX_SEED}")
    seeds = [int(value) for value in given]
    if not isinstance(seed, Sequence):
        seeds = [seeds[0] + image for image in range(images)]
        if images and seeds[-1] > MAX_SEED:
            raise SeedError(f"seed {seeds[0]} for {images} images: expected at most {MAX_SEED - images + 1}")
    if len(seeds) != images:
        raise SeedError(f"{len(seeds)} seeds for {images} images: expected one seed, or one per image")
    return torch.tensor(seeds, dtype=torch.int64, device=device)


def noise(
    seeds: Tensor, scale: int, tokens: int, bits: int, device: torch.device | str | None = None
) -> Tensor:
    """Return the uniform numbers of one scale.

    A number depends on (seed, scale, token, bit) alone: not on the batch, the device, or which scales ran
    before.

    Args:
        seeds: ``[B]`` int64.
        scale: 0-based scale index.
        tokens: tokens ``L`` of the scale.
        bits: bits ``d`` per token.
        device: where to compute; the device of ``seeds`` by default.

    Returns:
        ``[B, L, d]`` float32 in [0, 1), multiples of 2**-24.
    """
    seeds = seeds.to(device)
    token = torch.arange(tokens, device=seeds.device)
    return _uniform(seeds, token + (scale << (_SCALE_SHIFT - _TOKEN_SHIFT)), bits)


def schedule_noise(seeds: Tensor, schedule: Schedule, bits: int) -> Tensor:
    """Return ``noise`` of all scales in one call, concatenated along the tokens: ``[B, sum L, d]``."""
    positions = [
        torch.arange(tokens, device=seeds.device) + (scale << (_SCALE_SHIFT - _TOKEN_SHIFT))
        for scale, tokens in enumerate(schedule.tokens)
    ]
    return _uniform(seeds, torch.cat(positions), bits)


def guide(logits: Tensor, cfg: float) -> Tensor:
    """Apply classifier-free guidance: ``cfg * cond + (1 - cfg) * uncond``.

    Args:
        logits: ``[2 B, L, V]``, conditional rows first; ``[B, L, V]`` if ``cfg`` is 1.
        cfg: guidance scale; 1 returns the conditional logits as they are.
    """
    if cfg == 1:
        return logits
    cond, uncond = logits.chunk(2)
    return cfg * cond + (1 - cfg) * uncond


def sample_bits(logits: Tensor, uniform: Tensor, cfg: float, tau: float, top_p: float) -> Tensor:
    """Sample every bit on its own.

    The two-way softmax over bit values is ``p = sigmoid((l1 - l0) / tau)``. As in nucleus sampling a value
    whose probability is at most ``1 - top_p`` is never taken. The bit is 1 iff ``uniform < p``.

    Args:
        logits: ``[R, L, 2 d]``, R = 2B (guidance) or B (``cfg`` 1); entries 2i and 2i + 1 belong to bit i.
        uniform: ``[B, L, d]`` in [0, 1).
        cfg: guidance scale.
        tau: temperature; 0 takes the more likely value.
        top_p: nucleus; 0 or 1 switches it off.

    Returns:
        ``[B, L, d]`` bool.
    """
    zero, one = logits.float().unflatten(-1, (-1, 2)).unbind(-1)
    # Guidance is linear, so it may act on the difference of the two logits.
    evidence = guide(one - zero, cfg)
    if tau == 0:
        return evidence > 0
    probability = torch.sigmoid(evidence / tau)
    if 0 < top_p < 1:
        probability = probability.masked_fill(probability <= 1 - top_p, 0.0).masked_fill(
            probability >= top_p, 1.0
        )
    return uniform < probability


def _uniform(seeds: Tensor, positions: Tensor, bits: int) -> Tensor:
    """Hash seeds ``[B]`` with positions ``[L]`` (scale and token) and bit indices to ``[B, L, bits]``."""
    bit = torch.arange(bits, device=seeds.device)
    counter = (positions << _TOKEN_SHIFT)[:, None] + bit
    mixed = _mix(_mix(seeds)[:, None, None] + counter * _GOLDEN)
    return _shift_right(mixed, 40).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """Finalise SplitMix64 on int64: products wrap around, so the result is the same on every device."""
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, count: int) -> Tensor:
    """Shift without sign extension."""
    return (x >> count) & ((1 << (64 - count)) - 1)
