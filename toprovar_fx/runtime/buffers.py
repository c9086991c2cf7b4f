"""Memory at fixed addresses for the inputs of recordings, and what it holds."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .._torch_private import copy_all, version_of

# Name, shape, strides and dtype of an input.
_Key = tuple[str, tuple[int, ...], tuple[int, ...], torch.dtype]


class _Source(NamedTuple):
    """A tensor as it was when it was copied."""

    tensor: weakref.ref[Tensor]
    version: int
    pointer: int
    shape: torch.Size
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, version: int) -> _Source:
        """A tensor as it is now, at this version."""
        return cls(weakref.ref(tensor), version, tensor.data_ptr(), tensor.shape, tensor.stride())

    def is_still(self, tensor: Tensor) -> bool:
        """Whether it is `tensor`, which nobody has written to or given other memory (`t.data = x`) since."""
        return (
            self.tensor() is tensor
            and version_of(tensor) == self.version
            and tensor.data_ptr() == self.pointer
            and tensor.shape == self.shape
            and tensor.stride() == self.strides
        )

    def lay_like(self, tensor: Tensor) -> bool:
        """Whether it had the shape and strides of `tensor`."""
        return tensor.shape == self.shape and tensor.stride() == self.strides


class Stale(NamedTuple):
    """A buffer that does not hold what its source does, at the source's version."""

    key: _Key
    buffer: Tensor
    source: Tensor
    version: int | None


class Buffers:
    """Memory at fixed addresses, shared by the recordings of one program, by input name and layout.

    Attributes:
        fills: how often some of it was written.
    """

    def __init__(self) -> None:
        self.fills = 0
        self._known: dict[_Key, Tensor] = {}
        self._holds: dict[_Key, _Source] = {}
        # What came last under a name, and where it is: most inputs stay the same, or come in the same layout.
        self._last: dict[str, tuple[_Source, _Key, Tensor]] = {}

    def find(self, names: Sequence[str], sources: Sequence[Tensor]) -> tuple[list[Tensor], list[Stale]]:
        """The buffers of inputs, and those that do not hold what the sources do.

        Args:
            names: of the inputs.
            sources: the tensors that are passed.
        """
        found, stale = [], []
        last = self._last
        for name, source in zip(names, sources, strict=True):
            known = last.get(name)
            if known is not None:
                before, key, buffer = known
                if before.is_still(source):
                    found.append(buffer)
                    continue
                if before.lay_like(source) and key[3] == source.dtype:
                    stale.append(Stale(key, buffer, source, version_of(source)))
                    found.append(buffer)
                    continue
            key = name, tuple(source.shape), source.stride(), source.dtype
            buffer = self._at(key, source)
            holds = self._holds.get(key)
            if holds is None or not holds.is_still(source):
                stale.append(Stale(key, buffer, source, version_of(source)))
            else:
                last[name] = holds, key, buffer
            found.append(buffer)
        return found, stale

    def _at(self, key: _Key, like: Tensor) -> Tensor:
        if key not in self._known:
            with torch.inference_mode(False):
                self._known[key] = torch.empty_strided(
                    like.shape, like.stride(), dtype=like.dtype, device=like.device
                )
        return self._known[key]

    def fill(self, stale: Sequence[Stale]) -> None:
        """Copy the sources that are not what their buffers hold already."""
        with self.filled(stale):
            pass

    @contextmanager
    def filled(self, stale: Sequence[Stale]) -> Iterator[None]:
        """As `fill`; what a device can do without is done behind the body, which the copies precede."""
        if not stale:
            yield
            return
        self.fills += 1
        try:
            copy_all([one.buffer for one in stale], [one.source for one in stale])
            yield
        except BaseException:
            # What failed is copied again.
            for one in stale:
                self._forget(one.key)
            raise
        for key, buffer, source, version in stale:
            if version is None:
                self._forget(key)
            else:
                holds = self._holds[key] = _Source.of(source, version)
                self._last[key[0]] = holds, key, buffer

    def _forget(self, key: _Key) -> None:
        self._holds.pop(key, None)
        self._last.pop(key[0], None)
