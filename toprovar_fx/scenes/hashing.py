"""Stateless random numbers: the same on every device, independent of the batch they are drawn in."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SeedError

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1  # 2**32 over the golden ratio: spreads consecutive stream numbers


def mix(words: Tensor) -> Tensor:
    """Hash every 32-bit word to another one.

    A xor-shift-multiply finaliser (the "lowbias32" constants of C. Wellons' hash prospector). The products
    wrap in int64; their low 32 bits, all that is kept, are exact.

    Args:
        words: int64, any shape, values in ``0 .. 2**32 - 1``.

    Returns:
        int64 of the same shape and range.
    """
    words = ((words ^ (words >> 16)) * 0x7FEB352D) & _MASK
    words = ((words ^ (words >> 15)) * 0x846CA68B) & _MASK
    return words ^ (words >> 16)


def image_keys(seed: int, batch: int, device: torch.device | str) -> Tensor:
    """Return one key per image, int64 ``[B]``: image ``i`` depends on ``seed`` and ``i`` alone.

    Raises:
        SeedError: ``seed`` is out of range.
    """
    if not 0 <= seed < 2**63:
        raise SeedError(f"seed {seed} is out of range; expected 0 to 2**63 - 1")
    index = torch.arange(batch, device=device, dtype=torch.int64)
    return mix(mix(mix(index) ^ (seed & _MASK)) ^ ((seed >> 32) & _MASK))


def uniform(keys: Tensor, stream: int, count: int) -> Tensor:
    """Draw ``count`` numbers in ``[0, 1)`` per image.

    Args:
        keys: int64 ``[B]`` of `image_keys`.
        stream: Number of the draw; different streams of one key are independent.
        count: Numbers per image.

    Returns:
        float32 ``[B, count]``.
    """
    index = torch.arange(count, device=keys.device, dtype=torch.int64)
    streams = mix((keys + stream * _GOLDEN) & _MASK)
    return (mix(streams[:, None] ^ mix(index)) >> 8).to(torch.float32) * 2.0**-24
