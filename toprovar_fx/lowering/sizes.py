"""Sizes of a block graph's inputs: symbols of the trace, and those that passes add (K, offset, images)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from ..analysis.shapes import as_size, as_traced, value_of

KEPT = sympy.Symbol("K", integer=True, positive=True)
IMAGES = sympy.Symbol("images", integer=True, positive=True)
OFFSET = sympy.Symbol("offset", integer=True, nonnegative=True)
# The token count of the scale that is priced, where that of the graph is a constant.
TOKENS = sympy.Symbol("tokens", integer=True, positive=True)


def group_count(group: int) -> sympy.Symbol:
    """K of a group of layers in a joined step."""
    return sympy.Symbol(f"K{group}", integer=True, positive=True)


def group_offset(group: int) -> sympy.Symbol:
    """First cache row of a group of layers in a joined step; nonnegative, as `OFFSET`."""
    return sympy.Symbol(f"offset{group}", integer=True, nonnegative=True)


def is_small(symbol: sympy.Symbol) -> bool:
    """Whether 0 and 1 are values like any other of a symbol, which otherwise are sizes of their own."""
    return symbol == IMAGES or symbol.name.startswith(OFFSET.name)


@dataclass(frozen=True)
class InputSpec:
    """One input: an integer (`shape` is None and `value` its expression) or a tensor.

    `renamed` are symbols of its sizes that stand for expressions in those of the trace.
    """

    value: sympy.Expr | None = None
    shape: tuple[sympy.Expr, ...] | None = None
    stride: tuple[sympy.Expr, ...] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    renamed: tuple[tuple[sympy.Symbol, sympy.Expr], ...] = ()

    @property
    def symbols(self) -> set[sympy.Symbol]:
        """All size symbols of the input."""
        found = [self.value] if self.value is not None else [*(self.shape or ()), *(self.stride or ())]
        return set().union(*(expression.free_symbols for expression in found)) if found else set()


def tensor_spec(shape: tuple[sympy.Expr, ...], dtype: torch.dtype, device: torch.device) -> InputSpec:
    """A contiguous tensor input."""
    stride: list[sympy.Expr] = []
    step: sympy.Expr = sympy.Integer(1)
    for size in reversed(shape):
        stride.insert(0, step)
        step = step * size
    return InputSpec(shape=shape, stride=tuple(stride), dtype=dtype, device=device)


def spec_of(placeholder: fx.Node) -> InputSpec:
    """The spec that a pass attached, or the one read off Dynamo's example value."""
    if "toprovar_spec" in placeholder.meta:
        return placeholder.meta["toprovar_spec"]
    value = value_of(placeholder)
    if isinstance(value, torch.Tensor):
        return InputSpec(
            shape=tuple(as_size(size) for size in value.shape),
            stride=tuple(as_size(step) for step in value.stride()),
            dtype=value.dtype,
            device=value.device,
        )
    return InputSpec(value=as_size(value))


def traced_sizes(graph: fx.Graph) -> dict[sympy.Symbol, int]:
    """The values that the size symbols of a graph from Dynamo had when it was traced."""
    found: dict[sympy.Symbol, int] = {}
    for node in graph.nodes:
        value = value_of(node) if node.op == "placeholder" else None
        sizes = list(value.shape) if isinstance(value, torch.Tensor) else [value]
        for size in sizes:
            if isinstance(size, torch.SymInt) and isinstance(symbol := as_size(size), sympy.Symbol):
                found[symbol] = as_traced(size)
    return found


def graph_specs(graph: fx.Graph) -> list[InputSpec]:
    """Specs of all placeholders in order."""
    return [spec_of(node) for node in graph.nodes if node.op == "placeholder"]


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


def at_sizes(spec: InputSpec, values: dict[sympy.Symbol, int]) -> InputSpec:
    """The spec with every size a number; symbols without a value get 1."""

    def number(expression: sympy.Expr) -> sympy.Expr:
        return expression.xreplace(
            {symbol: sympy.Integer(values.get(symbol, 1)) for symbol in expression.free_symbols}
        )

    if spec.value is not None:
        return InputSpec(value=number(spec.value))
    assert spec.shape is not None and spec.stride is not None
    shape, stride = tuple(map(number, spec.shape)), tuple(map(number, spec.stride))
    return InputSpec(None, shape, stride, spec.dtype, spec.device)
