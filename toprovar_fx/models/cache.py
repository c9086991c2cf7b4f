"""Key/value memory of one generation."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor

from .configs import InfinityConfig


class KVCache:
    """Preallocated keys and values of every layer.

    One slot more than the longest schedule is allocated: the slice of the last scale then never equals the
    whole buffer, so no guard on that equality splits the symbolic graph. Slots are zero until they are
    written.

    Attributes:
        keys: per layer ``[R, H, max_tokens + 1, head_dim]``, L2-normalised and rotated.
        values: per layer, the same shape.
    """

    def __init__(
        self,
        config: InfinityConfig,
        rows: int,
        max_tokens: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate the memory for ``rows`` batch rows (CFG rows included) and ``max_tokens`` tokens."""
        shape = (rows, config.heads, max_tokens + 1, config.head_dim)
        self.max_tokens = max_tokens
        self.keys: list[Tensor] = [_zeros(shape, device, dtype) for _ in range(config.depth)]
        self.values: list[Tensor] = [_zeros(shape, device, dtype) for _ in range(config.depth)]

    def fits(
        self, config: InfinityConfig, rows: int, max_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> bool:
        """Whether it is what these arguments would allocate."""
        shape = (rows, config.heads, max_tokens + 1, config.head_dim)
        keys = self.keys[0]
        same = keys.shape == shape and keys.dtype == dtype and keys.device == device
        return same and len(self.keys) == config.depth

    def first(self, rows: int) -> KVCache:
        """The same memory, for the first so many batch rows alone."""
        part = copy.copy(self)
        part.keys = [key[:rows] for key in self.keys]
        part.values = [value[:rows] for value in self.values]
        return part

    @staticmethod
    def bytes_needed(
        config: InfinityConfig, rows: int, max_tokens: int, dtype: torch.dtype = torch.float32
    ) -> int:
        """Return the bytes that a cache of these sizes takes."""
        return 2 * config.depth * rows * config.width * (max_tokens + 1) * dtype.itemsize


class CacheShelf:
    """Holds the cache of the last generation for the next one of the same sizes, on CUDA.

    A cache that stays in place is what recorded CUDA graphs write to. Generations at the same time get caches
    of their own. A cache from the shelf is not cleared: slots hold old values until they are written.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._free: list[KVCache] = []

    def take(
        self, config: InfinityConfig, rows: int, max_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> KVCache:
        """Return the cache that was given back if it has these sizes, else a new one."""
        try:
            found: KVCache | None = self._free.pop()
        except IndexError:
            found = None
        if found is not None and found.fits(config, rows, max_tokens, device, dtype):
            return found
        # Its memory has to be free before the other is allocated.
        del found
        # Tensors of inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            return KVCache(config, rows, max_tokens, device, dtype)

    def give(self, cache: KVCache) -> None:
        """Take a cache back; one is kept."""
        if cache.keys[0].is_cuda and not self._free:
            self._free.append(cache)


def _zeros(shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    placed = torch.device(device) if device is not None else torch.get_default_device()
    if placed.type != "cpu":
        return torch.zeros(shape, device=placed, dtype=dtype)
    # The system hands out zeroed pages when they are first written; `torch.zeros` writes them all at once.
    pages = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(pages).view(dtype).view(shape)
