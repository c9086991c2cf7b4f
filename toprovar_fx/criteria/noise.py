"""Random numbers as a function of their position: equal on every device, in every batch and at every call."""

from __future__ import annotations

import torch
from torch import Tensor

# Steps and multipliers of SplitMix64 (Steele, Lea, Flood 2014) as signed 64-bit integers.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLY_2 = 0x94D049BB133111EB - 2**64


def counter_uniform(
    seeds: int | Tensor, stream: int, length: int, device: torch.device | str | None = None
) -> Tensor:
    """Return uniform numbers that depend on nothing but (seed, stream, index).

    Args:
        seeds: One seed or an int64 tensor ``[...]`` of seeds, for example one per image.
        stream: Tells uses of one seed apart, for example ``scale * layers + layer``.
        length: Number of values L per seed.
        device: Where to compute; default: where ``seeds`` is.

    Returns:
        Values in the open interval (0, 1), float32, ``[..., L]``.
    """
    if isinstance(seeds, int):
        # Filled in place: a number copied to the device would be waited for.
        seeds = torch.full((), seeds, dtype=torch.int64, device=device)
    seeds = seeds.to(device=device, dtype=torch.int64)
    counter = torch.arange(1, length + 1, dtype=torch.int64, device=seeds.device) * _STEP
    start = _mix(_mix(seeds) + _mix(torch.full_like(seeds, stream) + _STEP))
    bits = _shifted(_mix(start.unsqueeze(-1) + counter), 41)
    # 23 bits plus one half are exact in float32, and neither 0 nor 1 occurs.
    return (bits.float() + 0.5) * 2.0**-23


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shifted(value, 30)) * _MULTIPLY_1
    value = (value ^ _shifted(value, 27)) * _MULTIPLY_2
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, count: int) -> Tensor:
    """Shift right without the sign, which torch's arithmetic shift would copy."""
    return (value >> count) & (2 ** (64 - count) - 1)
