"""Inputs of graphs as data: their sizes are expressions in symbols, of the trace or added by passes."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch

# What passes add: kept tokens, images, the first cache row that a layer writes.
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

    `renamed` are symbols of its sizes that stand for expressions in those of the trace. A tensor that is
    `misaligned` began within 16 bytes when it was traced, as every second of a table of pairs does.
    """

    value: sympy.Expr | None = None
    shape: tuple[sympy.Expr, ...] | None = None
    stride: tuple[sympy.Expr, ...] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    renamed: tuple[tuple[sympy.Symbol, sympy.Expr], ...] = ()
    misaligned: bool = False

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
    return InputSpec(None, shape, stride, spec.dtype, spec.device, misaligned=spec.misaligned)
