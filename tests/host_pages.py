"""Virtual memory of the host behind the interface of a device's: pages that are really shared, on Linux."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import Counter, deque

import torch
from torch import Tensor

from toprovar_fx.models.shared_tail import MappedRange, PagesError

_FIXED = 0x10
_NOTHING, _BOTH = 0, mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


class HostPages:
    """Counts what is held, and fails at a chosen call.

    Args:
        fail_at: number of the call that raises, from 0; None: none does.
        out_of_memory: what the error says.
    """

    def __init__(self, fail_at: int | None = None, out_of_memory: bool = False) -> None:
        self.device = torch.device("cpu")
        self.page_bytes = mmap.PAGESIZE
        self.retired: deque[MappedRange] = deque()
        self.calls: list[str] = []
        self.fail_at, self.out_of_memory = fail_at, out_of_memory
        self.may_wait = True
        # Addresses, handles and mappings that are held; each has to be given back exactly once.
        self.reserved: dict[int, int] = {}
        self.handles: dict[int, int] = {}
        self.mapped: dict[int, int] = {}
        self.allowed: Counter[int] = Counter()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = (
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
        )
        self._libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

    @property
    def held(self) -> int:
        return len(self.reserved) + len(self.handles) + len(self.mapped)

    def reserve(self, size: int) -> int:
        self._called("reserve", size)
        address = self._mmap(None, size, _NOTHING, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        self.reserved[address] = size
        return address

    def create(self, size: int) -> int:
        self._called("create", size)
        handle = os.memfd_create("pages")
        os.ftruncate(handle, size)
        self.handles[handle] = size
        return handle

    def map(self, address: int, size: int, handle: int) -> None:
        self._called("map", size)
        assert self.handles[handle] == size and address not in self.mapped
        self._mmap(address, size, _BOTH, mmap.MAP_SHARED | _FIXED, handle)
        self.mapped[address] = size

    def allow(self, address: int, size: int) -> None:
        self._called("allow", size)
        assert sum(part for at, part in self.mapped.items() if address <= at < address + size) == size
        self.allowed[address] += 1

    def unmap(self, address: int, size: int) -> None:
        self.calls.append("unmap")
        assert self.mapped.pop(address) == size
        self._mmap(address, size, _NOTHING, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED, -1)

    def release(self, handle: int) -> None:
        self.calls.append("release")
        del self.handles[handle]
        os.close(handle)

    def free(self, address: int, size: int) -> None:
        self.calls.append("free")
        assert self.reserved.pop(address) == size
        assert not any(address <= at < address + size for at in self.mapped)
        assert self._libc.munmap(address, size) == 0

    def wait(self) -> bool:
        self.calls.append("wait")
        return self.may_wait

    def bytes_at(self, address: int, size: int, owner: object) -> Tensor:
        buffer = (ctypes.c_uint8 * size).from_address(address)
        buffer.owner = owner
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def _called(self, name: str, size: int) -> None:
        assert size > 0 and size % self.page_bytes == 0
        if self.fail_at is not None and len(self.calls) == self.fail_at:
            self.fail_at = None
            raise PagesError(f"{name}: refused", self.out_of_memory)
        self.calls.append(name)

    def _mmap(self, address: int | None, size: int, access: int, flags: int, handle: int) -> int:
        found = self._libc.mmap(address, size, access, flags, handle, 0)
        assert found != _FAILED, os.strerror(ctypes.get_errno())
        return int(found)
