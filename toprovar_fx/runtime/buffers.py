"""Memory at fixed addresses for the inputs of recordings, and what it holds."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from .._torch_private import copy_all, versions_of

# Name, shape, strides and dtype of an input.
_Key = tuple[str, tuple[int, ...], tuple[int, ...], torch.dtype]
# Version, address, shape and strides of a tensor: others once somebody writes to it, or gives it other memory
# (`t.data = x`).
_State = tuple[int | None, int, torch.Size, tuple[int, ...]]

_shape = attrgetter("shape")


class _Source(NamedTuple):
    """A tensor as it was when it was copied; its version is known."""

    tensor: weakref.ref[Tensor]
    state: _State

    def is_still(self, tensor: Tensor, state: _State) -> bool:
        """Whether it is `tensor`, whose state is `state` now."""
        return self.state == state and self.tensor() is tensor


class Stale(NamedTuple):
    """A buffer that does not hold what its source does, and the state that the source is in."""

    key: _Key
    buffer: Tensor
    source: Tensor
    state: _State


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
        for name, source, state in zip(names, sources, _states(sources), strict=True):
            known = last.get(name)
            if known is not None:
                (tensor, before), key, buffer = known
                if before == state and tensor() is source:
                    found.append(buffer)
                    continue
                if before[2:] == state[2:] and key[3] == source.dtype:
                    stale.append(Stale(key, buffer, source, state))
                    found.append(buffer)
                    continue
            key = name, tuple(source.shape), source.stride(), source.dtype
            buffer = self._at(key, source)
            holds = self._holds.get(key)
            if holds is None or not holds.is_still(source, state):
                stale.append(Stale(key, buffer, source, state))
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
        for key, buffer, source, state in stale:
            if state[0] is None:
                self._forget(key)
            else:
                holds = self._holds[key] = _Source(weakref.ref(source), state)
                self._last[key[0]] = holds, key, buffer

    def _forget(self, key: _Key) -> None:
        self._holds.pop(key, None)
        self._last.pop(key[0], None)


def _states(tensors: Sequence[Tensor]) -> Iterator[_State]:
    """The states of many tensors: attribute by attribute, for the card may be waiting."""
    layouts = map(_shape, tensors), map(Tensor.stride, tensors)
    return zip(versions_of(tensors), map(Tensor.data_ptr, tensors), *layouts, strict=True)
