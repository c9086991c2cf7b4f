"""Key/value memory of one generation."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
from torch import Tensor

from .cache_layout import CacheLayout
from .cache_memory import CacheSizes
from .configs import InfinityConfig

# Of the caches of new pipelines, and of the memory that is told before they are loaded.
DEFAULT_LAYOUT: CacheLayout = "plain"


class KVCache:
    """Preallocated keys and values of every layer.

    One slot more than the longest schedule is allocated: the slice of the last scale then never equals the
    whole buffer, so no guard on that equality splits the symbolic graph. Slots are zero until they are
    written.

    With the layout ``shared``, slots from ``kept_tokens`` on hold what a layer wrote only until the next
    layer runs: they are for a last scale, which nobody reads afterwards. A schedule whose other scales need
    more slots needs another cache.

    Attributes:
        keys: per layer ``[R, H, max_tokens + 1, head_dim]``, L2-normalised and rotated; shared ones have more
            slots, up to whole pages.
        values: per layer, the same shape.
        sizes: what was asked for.
    """

    def __init__(
        self,
        config: InfinityConfig,
        rows: int,
        max_tokens: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        layout: CacheLayout = "plain",
        kept_tokens: int | None = None,
    ) -> None:
        """Allocate the memory.

        Args:
            config: sizes of the model.
            rows: batch rows, CFG rows included.
            max_tokens: of all scales together.
            device: torch's default if None.
            dtype: of keys and values.
            layout: how they lie in memory; ``shared`` is ``plain`` where sharing saves nothing or the device
                cannot map memory, and ``token_major`` differs from ``plain`` in strides alone.
            kept_tokens: of all scales but the last; None: nothing may be shared.

        Raises:
            OptionError: unknown layout, or ``kept_tokens`` not in ``0 .. max_tokens``.
        """
        self.sizes = CacheSizes.of(config, rows, max_tokens, dtype, layout, kept_tokens)
        self.max_tokens = max_tokens
        placed = torch.device(device) if device is not None else torch.get_default_device()
        self.keys: list[Tensor]
        self.values: list[Tensor]
        self.keys, self.values = self.sizes.allocate(placed)

    def fits(
        self,
        config: InfinityConfig,
        rows: int,
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        layout: CacheLayout = "plain",
        kept_tokens: int | None = None,
    ) -> bool:
        """Whether it is what these arguments would allocate."""
        asked = CacheSizes.of(config, rows, max_tokens, dtype, layout, kept_tokens)
        return self.sizes == asked and self.keys[0].device == device

    def first(self, rows: int) -> KVCache:
        """The same memory, for the first so many batch rows alone."""
        part = copy.copy(self)
        part.keys = [key[:rows] for key in self.keys]
        part.values = [value[:rows] for value in self.values]
        return part

    @staticmethod
    def bytes_needed(
        config: InfinityConfig,
        rows: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        *,
        layout: CacheLayout = "plain",
        kept_tokens: int | None = None,
    ) -> int:
        """Return the bytes that a cache of these sizes takes, on a device that can map memory."""
        return CacheSizes.of(config, rows, max_tokens, dtype, layout, kept_tokens).memory_bytes()


class CacheShelf:
    """Holds the cache of the last generation for the next one of the same sizes, on CUDA.

    A cache that stays in place is what recorded CUDA graphs write to. Generations at the same time get caches
    of their own; one after another they may use different streams. A cache from the shelf is not cleared:
    slots hold old values until they are written.
    """

    def __init__(self) -> None:
        """Start empty."""
        # Each with the end of the work that was enqueued with it.
        self._free: list[tuple[KVCache, torch.cuda.Event]] = []

    def take(
        self,
        config: InfinityConfig,
        rows: int,
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        layout: CacheLayout = "plain",
        kept_tokens: int | None = None,
    ) -> KVCache:
        """Return the cache that was given back if it has these sizes, else a new one."""
        found: KVCache | None = None
        with suppress(IndexError):
            found, used = self._free.pop()
            torch.cuda.current_stream(found.keys[0].device).wait_event(used)
        if found is not None and found.fits(
            config, rows, max_tokens, device, dtype, layout=layout, kept_tokens=kept_tokens
        ):
            return found
        # Its memory has to be free before the other is allocated, on whatever stream that was allocated.
        if found is not None:
            used.synchronize()
        del found
        # Tensors of inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            return KVCache(config, rows, max_tokens, device, dtype, layout=layout, kept_tokens=kept_tokens)

    def give(self, cache: KVCache) -> None:
        """Take a cache back; one is kept."""
        if not cache.keys[0].is_cuda:
            return
        used = torch.cuda.current_stream(cache.keys[0].device).record_event()
        if self._free:
            used.synchronize()
        else:
            self._free.append((cache, used))
