"""Virtual memory of a CUDA device (CUDA Driver API, "Virtual Memory Management")."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections import deque

import torch
from torch import Tensor

from ..one_capture import CAPTURE
from .shared_tail import MappedRange, PagesError

log = logging.getLogger(__name__)

_LIBRARY = "libcuda.so.1"
_OUT_OF_MEMORY = 2
# CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
_SUPPORTED = 102
# CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_DEVICE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE
_PINNED, _ON_DEVICE, _READ_WRITE = 1, 1, 3
# CU_MEM_ALLOC_GRANULARITY_MINIMUM
_MINIMUM = 0


class _Location(ctypes.Structure):
    """``CUmemLocation``: a kind of place and its number."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Flags(ctypes.Structure):
    """``CUmemAllocationProp::allocFlags``: no compression, no RDMA, no special use."""

    _fields_ = (
        ("compressionType", ctypes.c_ubyte),
        ("gpuDirectRDMACapable", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _Properties(ctypes.Structure):
    """``CUmemAllocationProp``: memory of which kind is where, and whether other processes may get it."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("requestedHandleTypes", ctypes.c_int),
        ("location", _Location),
        ("win32HandleMetaData", ctypes.c_void_p),
        ("allocFlags", _Flags),
    )


class _Access(ctypes.Structure):
    """``CUmemAccessDesc``: who may do what with mapped addresses."""

    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


_ADDRESS, _SIZE, _HANDLE, _NONE = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint64
_INT, _POINTER = ctypes.c_int, ctypes.POINTER
_SIGNATURES = {
    "cuGetErrorName": (_INT, _POINTER(ctypes.c_char_p)),
    "cuDeviceGet": (_POINTER(_INT), _INT),
    "cuDeviceGetAttribute": (_POINTER(_INT), _INT, _INT),
    "cuMemGetAllocationGranularity": (_POINTER(_SIZE), _POINTER(_Properties), _INT),
    "cuMemAddressReserve": (_POINTER(_ADDRESS), _SIZE, _SIZE, _ADDRESS, _NONE),
    "cuMemAddressFree": (_ADDRESS, _SIZE),
    "cuMemCreate": (_POINTER(_HANDLE), _SIZE, _POINTER(_Properties), _NONE),
    "cuMemRelease": (_HANDLE,),
    "cuMemMap": (_ADDRESS, _SIZE, _SIZE, _HANDLE, _NONE),
    "cuMemUnmap": (_ADDRESS, _SIZE),
    "cuMemSetAccess": (_ADDRESS, _SIZE, _POINTER(_Access), _SIZE),
}


class CudaPages:
    """`shared_tail.Pages` of a CUDA device.

    Args:
        index: torch's number of the device.

    Raises:
        PagesError: no driver, or the device has no virtual memory management.
    """

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)
        self.retired: deque[MappedRange] = deque()
        try:
            self._driver = ctypes.CDLL(_LIBRARY)
            for name, arguments in _SIGNATURES.items():
                getattr(self._driver, name).argtypes = arguments
        except (OSError, AttributeError) as error:
            raise PagesError(f"no CUDA driver with virtual memory management: {error}") from error
        # The driver is initialised and the device has a context.
        with CAPTURE:
            torch.cuda.synchronize(self.device)
        number, supported, page = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
        self._call("cuDeviceGet", ctypes.byref(number), index)
        self._call("cuDeviceGetAttribute", ctypes.byref(supported), _SUPPORTED, number.value)
        if not supported.value:
            raise PagesError(f"{self.device} has no virtual memory management")
        place = _Location(_ON_DEVICE, number.value)
        self._properties = _Properties(type=_PINNED, location=place)
        self._access = _Access(place, _READ_WRITE)
        size_of_page = ctypes.byref(page), ctypes.byref(self._properties), _MINIMUM
        self._call("cuMemGetAllocationGranularity", *size_of_page)
        self.page_bytes = page.value

    def reserve(self, size: int) -> int:
        """Reserve addresses; returns the first."""
        address = ctypes.c_uint64()
        self._call("cuMemAddressReserve", ctypes.byref(address), size, 0, 0, 0)
        return address.value

    def create(self, size: int) -> int:
        """Allocate memory; returns its handle."""
        handle = ctypes.c_uint64()
        self._call("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(self._properties), 0)
        return handle.value

    def map(self, address: int, size: int, handle: int) -> None:
        """Put memory behind addresses."""
        self._call("cuMemMap", address, size, 0, handle, 0)

    def allow(self, address: int, size: int) -> None:
        """Let the device read and write."""
        self._call("cuMemSetAccess", address, size, ctypes.byref(self._access), 1)

    def unmap(self, address: int, size: int) -> None:
        """Undo one `map`."""
        self._call("cuMemUnmap", address, size)

    def release(self, handle: int) -> None:
        """Give a handle back."""
        self._call("cuMemRelease", handle)

    def free(self, address: int, size: int) -> None:
        """Undo one `reserve`."""
        self._call("cuMemAddressFree", address, size)

    def wait(self) -> bool:
        """Wait for the device; False while a graph is recorded, which waiting would break."""
        if not CAPTURE.acquire(blocking=False):
            return False
        try:
            if torch.cuda.is_current_stream_capturing():
                return False
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            log.debug("mapped caches are freed later: %s", error)
            return False
        finally:
            CAPTURE.release()
        return True

    def bytes_at(self, address: int, size: int, owner: object) -> Tensor:
        """Mapped addresses as a uint8 tensor, which keeps ``owner`` alive."""
        found = torch.as_tensor(_Interface(address, size, owner), device=self.device)
        assert found.data_ptr() == address, "torch copied the memory instead of taking it"
        return found

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(code, ctypes.byref(text))
            said = (text.value or b"unknown error").decode()
            raise PagesError(f"{name} on {self.device}: {said} ({code})", code == _OUT_OF_MEMORY)


class _Interface:
    """Addresses in the form that torch takes; the tensor keeps this alive."""

    def __init__(self, address: int, size: int, owner: object) -> None:
        self._owner = owner
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


@functools.cache
def cuda_pages(index: int) -> CudaPages:
    """Return the pages of a device, which keep what could not be freed yet.

    Raises:
        PagesError: it has none.
    """
    return CudaPages(index)
