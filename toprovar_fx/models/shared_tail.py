"""Caches whose layers share the memory of the last scale's slots, by virtual memory.

Each layer has a tensor with addresses of its own; behind the addresses of its tail lie the pages that lie
behind the tails of all other layers too. Neither the model, nor its graph, nor a kernel sees a difference.

It is right because nobody reads a slot of the last scale but the layer that wrote it, in that scale: layer l
writes its rows and attends before layer l + 1 writes. Eagerly, and where blocks are compiled and called in
turn (the backend's default), that is the order of the calls on one stream. In one graph of all layers it
follows from the data, as layer l + 1 writes what is computed from what layer l attended to, provided that the
compiler writes caches in place: a copy of a whole cache back to its memory could come between. Inductor does
for our models (`tests/test_shared_tail_code.py`). Afterwards all tails hold the rows of the last layer that
ran.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from contextlib import ExitStack, suppress
from typing import Protocol

import torch
from torch import Tensor

from .cache_layout import TokenMajor


class PagesError(RuntimeError):
    """The device cannot map memory as it was asked to.

    Attributes:
        out_of_memory: there was not enough.
    """

    def __init__(self, message: str, out_of_memory: bool = False) -> None:
        """Say what failed."""
        super().__init__(message)
        self.out_of_memory = out_of_memory


class Pages(Protocol):
    """Virtual memory of one device. Every method may raise `PagesError`; sizes are in whole pages.

    Attributes:
        device: whose memory it is.
        page_bytes: the smallest piece that can be mapped.
        retired: mapped addresses that nobody uses any more, to be given back as soon as that is possible.
    """

    device: torch.device
    page_bytes: int
    retired: deque[MappedRange]

    def reserve(self, size: int) -> int:
        """Reserve addresses without memory; returns the first."""

    def create(self, size: int) -> int:
        """Allocate memory without addresses; returns its handle."""

    def map(self, address: int, size: int, handle: int) -> None:
        """Put memory behind reserved addresses; the same memory may lie behind several."""

    def allow(self, address: int, size: int) -> None:
        """Let the device read and write mapped addresses."""

    def unmap(self, address: int, size: int) -> None:
        """Undo one `map`."""

    def release(self, handle: int) -> None:
        """Give a handle back; its memory is freed once nothing maps it."""

    def free(self, address: int, size: int) -> None:
        """Undo one `reserve`."""

    def wait(self) -> bool:
        """Wait until nothing that was started uses mapped memory; False if that cannot be done now."""

    def bytes_at(self, address: int, size: int, owner: object) -> Tensor:
        """Mapped addresses as a uint8 tensor, which keeps ``owner`` alive."""


class MappedRange:
    """Addresses of one tensor, and what is mapped there."""

    def __init__(self, pages: Pages, size: int) -> None:
        """Reserve ``size`` bytes of addresses."""
        self.pages, self.size = pages, size
        self.address = pages.reserve(size)
        self._mapped: list[tuple[int, int]] = []

    def map(self, offset: int, size: int, handle: int) -> None:
        """Put memory behind a part."""
        self.pages.map(self.address + offset, size, handle)
        self._mapped.append((self.address + offset, size))

    def free(self) -> None:
        """Give memory and addresses back; nothing may use them any more."""
        while self._mapped:
            self.pages.unmap(*self._mapped.pop())
        self.pages.free(self.address, self.size)


class _Footprint:
    """Memory of the caches that were mapped together, alive as long as one of their tensors is."""

    def __init__(self, device: torch.device, size: int) -> None:
        self.device, self.size = device, size


class _Owner:
    """What a tensor of mapped memory keeps alive; its end retires the addresses."""

    def __init__(self, mapped: MappedRange, footprint: _Footprint) -> None:
        self._footprint = footprint
        # At exit the driver takes everything back by itself, and may be gone before this would run.
        weakref.finalize(self, _retire, mapped).atexit = False


_footprints: weakref.WeakSet[_Footprint] = weakref.WeakSet()
_footprints_lock = threading.Lock()


def mapped_bytes(device: torch.device | str) -> int:
    """Return the memory of a device (all of its type without an index) behind mapped caches that are alive.

    torch's allocator has no part in it, so that ``torch.cuda.max_memory_allocated`` does not count it.
    """
    placed = torch.device(device)
    with _footprints_lock:
        found = list(_footprints)
    return sum(each.size for each in found if _same_place(each.device, placed))


def shared_caches(
    pages: Pages, layout: TokenMajor, layers: int, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Allocate keys and values of so many layers that share their tails; zeros.

    Args:
        pages: of the device.
        layout: of a layer's keys or values, in pages of that device.
        layers: how many.
        dtype: of ``layout.itemsize`` bytes.

    Returns:
        Keys and values by layer, ``[R, H, padded slots, D]``. The memory is freed when the last of them, and
        of their views, is gone.

    Raises:
        PagesError: the device refuses; nothing is left allocated.
    """
    give_back(pages)
    with ExitStack() as undo:
        ranges = [mapped for _ in ("keys", "values") for mapped in _map_layers(pages, layout, layers, undo)]
        footprint = _Footprint(pages.device, layout.memory_bytes(layers))
        owners = [_Owner(mapped, footprint) for mapped in ranges]
        undo.pop_all()
    with _footprints_lock:
        _footprints.add(footprint)
    tensors = [_tensor(mapped, owner, layout, dtype) for mapped, owner in zip(ranges, owners, strict=True)]
    return tensors[:layers], tensors[layers:]


def give_back(pages: Pages) -> None:
    """Free what is retired, if the device can be waited for now."""
    # Only what was retired before the wait: kernels may still use what another thread retires meanwhile.
    due = _take_all(pages.retired)
    if due and not pages.wait():
        pages.retired.extend(due)
        return
    for mapped in due:
        mapped.free()


def _take_all(retired: deque[MappedRange]) -> list[MappedRange]:
    """Empty it; another thread, or the end of another cache in this one, may do so at the same time."""
    taken: list[MappedRange] = []
    with suppress(IndexError):
        for _ in range(len(retired)):
            taken.append(retired.popleft())
    return taken


def _map_layers(pages: Pages, layout: TokenMajor, layers: int, undo: ExitStack) -> list[MappedRange]:
    """One range per layer; `undo` gets what frees them."""
    ranges = []
    with ExitStack() as handles:

        def create(size: int) -> int:
            handle = pages.create(size)
            # What is mapped keeps its memory without the handle.
            handles.callback(pages.release, handle)
            return handle

        tails = [create(layout.tail_bytes) for _ in range(layout.rows) if layout.tail_bytes]
        for _ in range(layers):
            mapped = MappedRange(pages, layout.tensor_bytes)
            undo.callback(mapped.free)
            for row in range(layout.rows):
                begin = row * layout.row_bytes
                if layout.own_bytes:
                    mapped.map(begin, layout.own_bytes, create(layout.own_bytes))
                if layout.tail_bytes:
                    mapped.map(begin + layout.own_bytes, layout.tail_bytes, tails[row])
            pages.allow(mapped.address, mapped.size)
            ranges.append(mapped)
    return ranges


def _tensor(mapped: MappedRange, owner: _Owner, layout: TokenMajor, dtype: torch.dtype) -> Tensor:
    flat = mapped.pages.bytes_at(mapped.address, mapped.size, owner)
    flat.zero_()
    # No view of another tensor: what is traced with it would have to follow its base.
    empty = torch.empty(0, dtype=dtype, device=flat.device)
    return empty.set_(flat.untyped_storage(), 0, layout.shape, layout.strides)


def _same_place(held: torch.device, asked: torch.device) -> bool:
    return held.type == asked.type and asked.index in (None, held.index)


def _retire(mapped: MappedRange) -> None:
    mapped.pages.retired.append(mapped)
    give_back(mapped.pages)
