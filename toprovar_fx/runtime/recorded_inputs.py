"""Where the tensors among a call's arguments are for its recordings: held where they lie, or in buffers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor, nn

from .buffers import Buffers, Stale

_address = Tensor.data_ptr

# Takes some values of a sequence.
Taking = Callable[[Sequence[Any]], tuple[Any, ...]]


class Found(NamedTuple):
    """Where the tensors among some arguments are.

    Attributes:
        inputs: found them.
        addresses: of those that are held, then of the buffers: what recordings are found by. Equal sizes may
            come in other layouts, which have buffers of their own.
        buffers: of those that are copied, in order.
        stale: the buffers that do not hold yet what was passed.
        fills: how often the buffers had been filled.
    """

    inputs: Inputs
    addresses: tuple[int, ...]
    buffers: Sequence[Tensor]
    stale: Sequence[Stale]
    fills: int


class Inputs:
    """Consecutive arguments of a call; their kinds are those of the first call.

    Args:
        names: of these arguments.
        held: positions of those whose memory recordings are bound to; so is that of parameters.
        start: position of the first.

    Attributes:
        bound: as `held`.
        copied: positions of those that are copied, once the first call was seen.
        end: behind the last.
    """

    def __init__(self, names: Sequence[str], held: Collection[int] = (), start: int = 0) -> None:
        self.end = start + len(names)
        self.bound = frozenset(held)
        self.copied: list[int] = []
        self._given, self._start = names, start
        self._names: list[str] = []
        self._take: tuple[Taking, Taking] | None = None

    def _learn(self, arguments: Sequence[Any]) -> tuple[Taking, Taking]:
        """What takes the held and the copied ones out of all arguments of a call."""
        tensors = [at for at in range(self._start, self.end) if isinstance(arguments[at], Tensor)]
        held = [at for at in tensors if at in self.bound or isinstance(arguments[at], nn.Parameter)]
        self.copied = sorted(set(tensors) - set(held))
        self._names = [self._given[at - self._start] for at in self.copied]
        return taking(held), taking(self.copied)

    def find(self, arguments: Sequence[Any], buffers: Buffers) -> Found:
        """Where the tensors among these arguments are; nothing is copied yet."""
        self._take = self._take or self._learn(arguments)
        held, copied = self._take
        found, stale = buffers.find(self._names, copied(arguments))
        addresses = *map(_address, held(arguments)), *map(_address, found)
        return Found(self, addresses, found, stale, buffers.fills)

    def stage(self, arguments: Sequence[Any], buffers: Buffers) -> Found:
        """As `find`, and all is copied. It holds until somebody fills the buffers again."""
        found = self.find(arguments, buffers)
        buffers.fill(found.stale)
        return found._replace(stale=(), fills=buffers.fills)


def taking(positions: Sequence[int]) -> Taking:
    """A function that takes the values at some positions of a sequence: hundreds, at every scale."""
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda values: tuple(values[at] for at in positions)
