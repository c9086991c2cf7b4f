"""Reads the sizes of a call off its arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy

from ..input_specs import InputSpec


class SizeReader:
    """Reads the size symbols off real arguments; where each stands is looked up once.

    Args:
        specs: the inputs.

    Attributes:
        values: reads the values alone off a tuple of arguments, always in the same order.
    """

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        places: dict[sympy.Symbol, tuple[int, int | None]] = {}
        for position, spec in enumerate(specs):
            if isinstance(spec.value, sympy.Symbol):
                places.setdefault(spec.value, (position, None))
            for dimension, size in enumerate(spec.shape or ()):
                if isinstance(size, sympy.Symbol):
                    places.setdefault(size, (position, dimension))
        self._symbols = tuple(places)
        self._renamed = {symbol: size for spec in specs for symbol, size in spec.renamed}
        self.values = _reader(list(places.values()))

    def taken_from(self, values: Mapping[sympy.Symbol, int]) -> tuple[tuple[sympy.Symbol, int], ...]:
        """What reading arguments of these sizes gives.

        Raises:
            KeyError: a size is not among `values`.
        """
        known = dict(values)
        for symbol, size in self._renamed.items():
            known[symbol] = int(
                size.xreplace({part: sympy.Integer(values[part]) for part in size.free_symbols})
            )
        return tuple((symbol, known[symbol]) for symbol in self._symbols)

    def named(self, values: tuple[int, ...]) -> tuple[tuple[sympy.Symbol, int], ...]:
        """What `values` read, with the symbols."""
        return tuple(zip(self._symbols, values, strict=True))

    def __call__(self, arguments: tuple[Any, ...]) -> tuple[tuple[sympy.Symbol, int], ...]:
        """The values with their symbols, always in the same order."""
        return self.named(self.values(arguments))


def _reader(places: Sequence[tuple[int, int | None]]) -> Callable[[tuple[Any, ...]], tuple[int, ...]]:
    """Reads the integers and sizes at these places: (argument, its dimension or None)."""
    positions = [position for position, dimension in places if dimension is None]
    if len(positions) < len(places):
        return lambda arguments: tuple(
            arguments[position] if dimension is None else arguments[position].shape[dimension]
            for position, dimension in places
        )
    if len(positions) > 1:
        return operator.itemgetter(*positions)
    # Of one position `itemgetter` returns no tuple; of a slice it does.
    first = positions[0] if positions else 0
    return operator.itemgetter(slice(first, first + len(positions)))
