"""Allocates the keys and values of all layers in a layout."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from .cache_layout import USUAL_PAGE_BYTES, CacheLayout, TokenMajor, checked_layout
from .configs import InfinityConfig
from .cuda_pages import cuda_pages
from .shared_tail import Pages, PagesError, shared_caches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheSizes:
    """What a cache holds and how; two caches of equal sizes can stand in for each other.

    Attributes:
        layers: each with keys and values ``[rows, heads, slots, width]``.
        rows: batch rows.
        heads: per row.
        slots: one per token.
        width: of a head.
        dtype: of the numbers.
        layout: how they lie in memory.
        kept_slots: slots that a later scale reads; all of them unless the layout is ``shared``.
    """

    layers: int
    rows: int
    heads: int
    slots: int
    width: int
    dtype: torch.dtype
    layout: CacheLayout
    kept_slots: int

    @staticmethod
    def of(
        config: InfinityConfig,
        rows: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        *,
        layout: CacheLayout = "plain",
        kept_tokens: int | None = None,
    ) -> CacheSizes:
        """Return the sizes for a model.

        One slot more than the longest schedule is asked for: the slice of the last scale then never equals
        the whole buffer, so no guard on that equality splits the symbolic graph.

        Args:
            config: sizes of the model.
            rows: batch rows, CFG rows included.
            max_tokens: of all scales together.
            dtype: of keys and values.
            layout: how they lie in memory; ``shared`` is ``plain`` where sharing saves nothing or the device
                cannot map memory, and ``token_major`` differs from ``plain`` in strides alone.
            kept_tokens: of all scales but the last; None: nothing may be shared.

        Raises:
            OptionError: unknown layout, or ``kept_tokens`` not in ``0 .. max_tokens``.
        """
        checked, slots = checked_layout(layout), max_tokens + 1
        if kept_tokens is not None and not 0 <= kept_tokens <= max_tokens:
            raise OptionError(f"kept_tokens={kept_tokens}: expected a number in 0 .. {max_tokens}, or None")
        kept = slots if checked != "shared" or kept_tokens is None else kept_tokens
        return CacheSizes(
            config.depth, rows, config.heads, slots, config.head_dim, dtype, checked, kept
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of one layer's keys."""
        return self.rows, self.heads, self.slots, self.width

    @property
    def separate_bytes(self) -> int:
        """Memory where no layers share any."""
        return 2 * self.layers * math.prod(self.shape) * self.dtype.itemsize

    def in_pages(self, page_bytes: int) -> TokenMajor:
        """How one layer's keys lie in pages of this size."""
        return TokenMajor(*self.shape, self.dtype.itemsize, self.kept_slots, page_bytes)

    def saving(self, page_bytes: int) -> int:
        """Bytes that sharing saves; below 0 where whole pages cost more."""
        return self.separate_bytes - self.in_pages(page_bytes).memory_bytes(self.layers)

    def memory_bytes(self, page_bytes: int = USUAL_PAGE_BYTES) -> int:
        """Bytes of all keys and values, on a device that can map memory."""
        return self.separate_bytes - (max(0, self.saving(page_bytes)) if self.layout == "shared" else 0)

    def allocate(self, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """Return zeroed keys and values by layer; ``shared`` ones share their tails if they are on CUDA."""
        if self.layout == "shared" and device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            try:
                with torch.cuda.device(index):
                    shared = self.shared_in(cuda_pages(index))
            except PagesError as error:
                log.debug("caches that share no memory: %s", error)
            else:
                if shared is not None:
                    return shared
        return self._separate(device), self._separate(device)

    def shared_in(self, pages: Pages) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return keys and values that share their tails, or None where that saves nothing.

        Raises:
            PagesError: the device refuses.
        """
        if self.saving(pages.page_bytes) <= 0:
            return None
        lies = self.in_pages(pages.page_bytes)
        try:
            return shared_caches(pages, lies, self.layers, self.dtype)
        except PagesError as error:
            if not error.out_of_memory:
                raise
        # What torch's allocator holds unused, the driver cannot give out.
        torch.cuda.empty_cache()
        return shared_caches(pages, lies, self.layers, self.dtype)

    def _separate(self, device: torch.device) -> list[Tensor]:
        rows, heads, slots, width = self.shape
        if self.layout == "token_major":
            return [
                _zeros((rows, slots, heads, width), device, self.dtype).transpose(1, 2)
                for _ in range(self.layers)
            ]
        return [_zeros(self.shape, device, self.dtype) for _ in range(self.layers)]


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    # The system hands out zeroed pages when they are first written; `torch.zeros` writes them all at once.
    pages = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(pages).view(dtype).view(shape)
