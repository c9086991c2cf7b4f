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


def _zeros(shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    placed = torch.device(device) if device is not None else torch.get_default_device()
    if placed.type != "cpu":
        return torch.zeros(shape, device=placed, dtype=dtype)
    # The system hands out zeroed pages when they are first written; `torch.zeros` writes them all at once.
    pages = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(pages).view(dtype).view(shape)
