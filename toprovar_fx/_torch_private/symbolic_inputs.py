"""Inputs of a graph with symbolic sizes, and what a run on them assumed about the sizes.

Block graphs get size symbols of their own (tokens L, kept tokens K, cache offset), which no Dynamo input
could provide. Their environment tells afterwards, as sympy expressions, what was computed of them and for
which sizes that holds; its guards are evaluated before each new size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from ..input_specs import InputSpec, is_small

log = logging.getLogger(__name__)


class SymbolicInputs:
    """Fake inputs of a block graph with symbolic sizes.

    Args:
        specs: one per input.
        hints: a value per size symbol, the size that code generation is tuned for.

    Attributes:
        values: the fake inputs.
        unnamed: symbols that occur in sizes of tensors alone; no input is their value.
        unnamed_values: one symbolic integer for each of them.
        unreadable: symbols within larger expressions alone, strides say; no call tells their value.
    """

    def __init__(self, specs: Sequence[InputSpec], hints: Mapping[sympy.Symbol, int]) -> None:
        self._environment = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self._environment)
        self._known: dict[sympy.Expr, sympy.Expr] = {}
        self.values = [self._fake(spec, hints) for spec in specs]
        named = {spec.value for spec in specs}
        alone = {size for spec in specs for size in spec.shape or () if isinstance(size, sympy.Symbol)}
        self.unnamed = [symbol for symbol in self._known if symbol in alone - named]
        self.unreadable = [symbol for symbol in self._known if symbol not in alone | named]
        self.unnamed_values = [self._size(symbol, hints) for symbol in self.unnamed]

    def _fake(self, spec: InputSpec, hints: Mapping[sympy.Symbol, int]) -> object:
        if spec.value is not None:
            return self._size(spec.value, hints)
        assert spec.shape is not None and spec.stride is not None
        # Fake values made in inference mode could not be written to while the graph is traced.
        with torch.inference_mode(False), self.mode:
            made = torch.empty_strided(
                [self._size(size, hints) for size in spec.shape],
                [self._size(step, hints) for step in spec.stride],
                dtype=spec.dtype,
                device=spec.device,
            )
            # Inductor reads off the offset that it must not count on an address, and copies nothing then.
            return made.as_strided(made.shape, made.stride(), 1) if spec.misaligned else made

    def _size(self, expression: sympy.Expr, hints: Mapping[sympy.Symbol, int]) -> int | torch.SymInt:
        from torch._dynamo.source import LocalSource

        if expression.is_Integer:
            return int(expression)
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in self._known:
                self._known[symbol] = self._environment.create_symbol(
                    hints[symbol],
                    LocalSource(f"toprovar_{symbol}"),
                    dynamic_dim=DimDynamic.DYNAMIC,
                    do_not_specialize_zero_one=is_small(symbol),
                )
        own = expression.xreplace(self._known)
        hint = int(
            expression.xreplace({symbol: sympy.Integer(hints[symbol]) for symbol in expression.free_symbols})
        )
        source = LocalSource(f"toprovar_{expression}") if isinstance(expression, sympy.Symbol) else None
        return self._environment.create_symintnode(own, hint=hint, source=source)

    @property
    def symbol_names(self) -> dict[str, str]:
        """Names of the symbols in the fake values' sizes, and what they were called in the specs."""
        return {str(own): str(symbol) for symbol, own in self._known.items()}

    def guards(self) -> Callable[[Sequence[object], Mapping[sympy.Symbol, int]], bool]:
        """A check that arguments with these sizes satisfy all that the compilation assumed about them."""
        environment = self._environment
        code = environment.produce_guards_expression(self.values)  # type: ignore[arg-type]
        replaced = {symbol: environment.replacements.get(own) for symbol, own in self._known.items()}
        fixed = {
            symbol: int(value) for symbol, value in replaced.items() if value is not None and value.is_Integer
        }
        if fixed:
            log.info("the compilation fixed sizes: %s", fixed)

        def holds(arguments: Sequence[object], sizes: Mapping[sympy.Symbol, int]) -> bool:
            if any(sizes.get(symbol) != value for symbol, value in fixed.items()):
                return False
            if not code or environment.evaluate_guards_expression(code, arguments):
                return True
            # The step of an axis of size 1 is never taken, and a slice of one row has that of the whole.
            alike = [_with_fresh_strides(value) for value in arguments]
            return bool(environment.evaluate_guards_expression(code, alike))

        return holds

    def expression(self, value: int | torch.SymInt) -> sympy.Expr:
        """A size that a run on these inputs computed, in the symbols of the specs.

        Raises:
            ValueError: it depends on data.
        """
        if not isinstance(value, torch.SymInt):
            return sympy.Integer(value)
        found = value.node.expr.xreplace(self._names())
        if found.free_symbols - self._known.keys():
            raise ValueError(f"the size {found} depends on data")
        return sympy.expand(found)

    def conditions(self) -> list[sympy.Basic]:
        """What the runs on these inputs assumed about the sizes, in the symbols of the specs."""
        environment, names = self._environment, self._names()
        found = [guard.expr.xreplace(names) for guard in environment.guards]
        for symbol, own in self._known.items():
            if own.is_Integer:
                found.append(sympy.Eq(symbol, own))
                continue
            if own in environment.replacements:
                found.append(sympy.Eq(symbol, environment.replacements[own].xreplace(names)))
            bounds = environment.var_to_range.get(own)
            if bounds is not None:
                found.append(symbol >= bounds.lower)
                found += [symbol <= bounds.upper] if bounds.upper.is_Integer else []
        parts = [part for condition in found for part in sympy.And.make_args(condition)]
        return [part for part in parts if part is not sympy.true]

    def _names(self) -> dict[sympy.Expr, sympy.Expr]:
        return {own: symbol for symbol, own in self._known.items() if not own.is_Integer}


def _with_fresh_strides(value: object) -> object:
    """A tensor without gaps, as a fresh one of its shape lies in memory; anything else as it is."""
    if not isinstance(value, torch.Tensor) or not value.is_contiguous():
        return value
    return value.detach().view(-1).view(value.shape)
