"""Bytes that a graph moves, seen operator by operator as it runs on fake tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .._torch_private import DispatchMode, packet_of, storage_of, tree_leaves, written_arguments

Bytes = Any  # an int, or a SymInt where sizes are symbols

# Operators that read of their first tensor only as many elements as they write.
_SELECTING = {"gather", "index", "index_select", "embedding"}


class TrafficCounter(DispatchMode):
    """Adds up the bytes of every operator that runs while it is active.

    Enter it before the counter that decomposes operators, so that it sees what is left of them.

    Args:
        contractions: operators (overload packets) that are kernels of their own even under perfect fusion:
            matrix products, attention, convolutions.
        inputs: the tensors that the graph is given.
    """

    supports_higher_order_operators = True

    def __init__(self, contractions: Collection[object], inputs: Iterable[object]) -> None:
        super().__init__()
        self._contractions = contractions
        self._inputs = {storage_of(value) for value in inputs if isinstance(value, Tensor)}
        self._moved: list[Bytes] = []
        self._contracted: list[Bytes] = []
        self._read: dict[tuple[int, Bytes, str], Bytes] = {}
        self._written: list[Bytes] = []
        self._results: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and note its traffic."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        written = _tensors(written_arguments(func, args, kwargs))
        given = _tensors((args, kwargs))
        known = {storage_of(value) for value in given}
        made = [value for value in _tensors(result) if storage_of(value) not in known]
        if not made and not written:
            return  # a view moves nothing
        # A copy overwrites its target; any other in-place operator reads it as well.
        overwrites = str(packet_of(func)) in ("aten.copy_", "aten.fill_", "aten.zero_")
        read = [value for value in given if not (overwrites and any(value is w for w in written))]
        selects = getattr(func, "__name__", "").partition(".")[0] in _SELECTING and bool(made)
        reads = [
            _bytes(made[0], value.element_size()) if selects and at == 0 else _bytes(value)
            for at, value in enumerate(read)
        ]
        writes = [_bytes(value) for value in (*made, *written)]
        self._moved += [*reads, *writes]
        if packet_of(func) in self._contractions:
            self._contracted += [*reads, *writes]
            self._results += made
            return
        for value, size in zip(read, reads, strict=True):
            if storage_of(value) in self._inputs:
                self._read[storage_of(value), value.storage_offset(), str(size)] = size
        self._written += [_bytes(value) for value in written if storage_of(value) in self._inputs]

    def unfused(self) -> Bytes:
        """Every operator reads its distinct inputs and writes its results; views are free."""
        return sum(self._moved)

    def fused(self, outputs: object) -> Bytes:
        """Contractions read and write; of the rest only what enters and leaves the graph counts.

        Args:
            outputs: what the graph returned.
        """
        written = {storage_of(value) for value in self._results} | self._inputs
        leaving = {
            storage_of(value): _bytes(value)
            for value in _tensors(outputs)
            if storage_of(value) not in written
        }
        return sum(self._contracted) + sum(self._read.values()) + sum(self._written) + sum(leaving.values())


def _tensors(values: object) -> list[Tensor]:
    """Tensors among nested values, each once."""
    found = {id(value): value for value in tree_leaves(values) if isinstance(value, Tensor)}
    return list(found.values())


def _bytes(tensor: Tensor, element_size: int | None = None) -> Bytes:
    """Bytes of the distinct elements: an expanded dimension counts once."""
    sizes = [
        size
        for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        if not (isinstance(step, int) and step == 0)
    ]
    return math.prod(sizes) * (element_size or tensor.element_size())
