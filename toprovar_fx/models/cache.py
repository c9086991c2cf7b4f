"""Key/value memory of one generation."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
from torch import Tensor

from .cache_layout import CacheLayout
from .cache_memory import CacheSizes

# Of the caches of new pipelines, and of the memory that is told before they are loaded.
DEFAULT_LAYOUT: CacheLayout = "plain"


class KVCache:
    """Preallocated keys and values of every layer; slots are zero until they are written.

    With the layout ``shared``, slots from ``sizes.kept_slots`` on hold what a layer wrote only until the next
    layer runs: they are for a last scale, which nobody reads afterwards. A schedule whose other scales need
    more slots needs another cache.

    Args:
        sizes: what it holds, and how.
        device: torch's default if None.

    Attributes:
        keys: per layer ``[R, H, slots, head_dim]``, L2-normalised and rotated; shared ones have more slots,
            up to whole pages.
        values: per layer, the same shape.
        sizes: what was asked for.
    """

    def __init__(self, sizes: CacheSizes, device: torch.device | str | None = None) -> None:
        self.sizes = sizes
        placed = torch.device(device) if device is not None else torch.get_default_device()
        self.keys: list[Tensor]
        self.values: list[Tensor]
        self.keys, self.values = sizes.allocate(placed)

    def first(self, rows: int) -> KVCache:
        """The same memory, for the first so many batch rows alone."""
        part = copy.copy(self)
        part.keys = [key[:rows] for key in self.keys]
        part.values = [value[:rows] for value in self.values]
        return part


class CacheShelf:
    """Holds the cache of the last generation for the next one of the same sizes, on CUDA.

    A cache that stays in place is what recorded CUDA graphs write to. Generations at the same time get caches
    of their own; one after another they may use different streams. A cache from the shelf is not cleared:
    slots hold old values until they are written.
    """

    def __init__(self) -> None:
        # Each with the end of the work that was enqueued with it.
        self._free: list[tuple[KVCache, torch.cuda.Event]] = []

    def take(self, sizes: CacheSizes, device: torch.device) -> KVCache:
        """Return the cache that was given back if it has these sizes, else a new one."""
        found: KVCache | None = None
        with suppress(IndexError):
            found, used = self._free.pop()
            torch.cuda.current_stream(found.keys[0].device).wait_event(used)
        if found is not None and found.sizes == sizes and found.keys[0].device == device:
            return found
        # Its memory has to be free before the other is allocated, on whatever stream that was allocated.
        if found is not None:
            used.synchronize()
        del found
        # Tensors of inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            return KVCache(sizes, device)

    def give(self, cache: KVCache) -> None:
        """Take a cache back; one is kept."""
        if not cache.keys[0].is_cuda:
            return
        used = torch.cuda.current_stream(cache.keys[0].device).record_event()
        if self._free:
            used.synchronize()
        else:
            self._free.append((cache, used))
