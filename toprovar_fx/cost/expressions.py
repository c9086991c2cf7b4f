"""FLOPs and bytes of a graph as expressions in its size symbols, by one run on fake tensors.

The run is counted by `torch.utils.flop_counter` itself, with symbols for sizes: what comes out equals its
count at any numbers, by construction, as long as the conditions hold under which the run was made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import sympy
from torch import fx
from torch.utils.flop_counter import flop_registry

from .._torch_private import SymbolicInputs, fake_run
from ..analysis.graph_sizes import graph_specs
from ..analysis.run_key import one_per_key, run_key
from ..flops import flop_counter
from ..input_specs import InputSpec, at_sizes
from .traffic import TrafficCounter

log = logging.getLogger(__name__)

# sympy ships no types: the alias documents, `Any` checks nothing.
Expression: TypeAlias = Any
Sizes = tuple[tuple[sympy.Symbol, int], ...]


class Cost(NamedTuple):
    """What one call of a graph costs at certain sizes.

    Attributes:
        flops: floating-point operations, as `torch.utils.flop_counter` counts them.
        bytes_fused: memory traffic if everything between two contractions (matrix products, attention,
            convolutions) were fused into them: a contraction reads its operands and writes its result once;
            graph inputs that something else reads are read once; results that no contraction wrote, and rows
            written into caches, are written once. A lower bound for kernels that hold one contraction each.
        bytes_unfused: traffic if every operator were a kernel that reads each of its inputs and writes each
            of its results once. Views are free; an expanded dimension is read once. An upper bound.
    """

    flops: int
    bytes_fused: int
    bytes_unfused: int

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        """The sum of two costs."""
        return Cost(*(mine + its for mine, its in zip(self, other, strict=True)))


NOTHING = Cost(0, 0, 0)


@dataclass(frozen=True)
class CostExpressions:
    """The cost of a graph in its size symbols.

    Attributes:
        flops, bytes_fused, bytes_unfused: as in `Cost`.
        conditions: what the sizes have to fulfil for these expressions to be right.
    """

    flops: Expression
    bytes_fused: Expression
    bytes_unfused: Expression
    conditions: tuple[Expression, ...] = ()

    @property
    def symbols(self) -> tuple[sympy.Symbol, ...]:
        """The size symbols that the cost or its conditions depend on, by name."""
        every = (self.flops, self.bytes_fused, self.bytes_unfused, *self.conditions)
        return tuple(sorted(set().union(*(part.free_symbols for part in every)), key=str))


def trace_cost(
    graph: fx.GraphModule, specs: Sequence[InputSpec], values: Mapping[sympy.Symbol, int]
) -> CostExpressions:
    """Count a graph once with symbols for sizes.

    Args:
        graph: what to run; its inputs are described by `specs`.
        specs: sizes, dtypes and devices of the inputs.
        values: a size for every symbol, at which questions that the run asks about its symbols are answered;
            the answers become conditions. A size that the run cannot treat as a symbol becomes one as well.
    """
    try:
        return _count(graph, SymbolicInputs(specs, values))
    except Exception as error:
        # An operator without symbolic shapes: numbers can be counted all the same.
        log.info("counting at fixed sizes, since symbols failed: %s", error)
        return count_cost(graph, specs, values)


def count_cost(
    graph: fx.GraphModule, specs: Sequence[InputSpec], values: Mapping[sympy.Symbol, int]
) -> CostExpressions:
    """Count a graph at fixed sizes, which become the conditions: several times faster than with symbols."""
    fixed = _count(graph, SymbolicInputs([at_sizes(spec, dict(values)) for spec in specs], {}))
    conditions = tuple(sympy.Eq(symbol, value) for symbol, value in values.items())
    return CostExpressions(fixed.flops, fixed.bytes_fused, fixed.bytes_unfused, conditions)


def _count(graph: fx.GraphModule, inputs: SymbolicInputs) -> CostExpressions:
    counter = flop_counter()
    traffic = TrafficCounter(counter.flop_registry.keys(), inputs.values)
    with traffic, counter:
        outputs = fake_run(graph, inputs)
    counted = (counter.get_total_flops(), traffic.fused(outputs), traffic.unfused())
    flops, fused, unfused = map(inputs.expression, counted)
    return CostExpressions(flops, fused, unfused, tuple(dict.fromkeys(inputs.conditions())))


class GraphCosts:
    """The cost of one graph at any sizes: counted at the first, traced with symbols for all others.

    Graphs that are equal share what was counted of one of them: the same model in another program, say.

    Args:
        graph: what to price.

    Attributes:
        specs: its inputs.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph, self.specs = graph, graph_specs(graph.graph)
        self._symbols = sorted(set().union(*(spec.symbols for spec in self.specs)), key=str)

    @cached_property
    def _found(self) -> _Found:
        key = run_key(self._graph, self.specs)
        # Users may add formulas to torch's for FLOPs.
        return _found_by(None if key is None else (key, len(flop_registry)))

    def at(self, sizes: Sizes) -> Cost:
        """The cost of one call at these sizes; further sizes in `sizes` do not matter."""
        found = self._found
        known = found.costs.get(sizes)
        if known is None:
            values = self._values(sizes)
            counted = found.costs or found.traced
            known = self._holding(values).cost(values) if counted else self._count(values)
            found.costs[sizes] = known
        return known

    def expressions(self, sizes: Sizes) -> CostExpressions:
        """The expressions that hold at these sizes."""
        return self._holding(self._values(sizes)).found

    def _count(self, values: Mapping[sympy.Symbol, int]) -> Cost:
        return _Evaluated(count_cost(self._graph, self.specs, values)).cost(values)

    def _values(self, sizes: Sizes) -> dict[sympy.Symbol, int]:
        # A symbol without a value stands in a stride, or for the slots of a joined cache, of which there are
        # enough; no cost depends on it.
        given = dict(sizes)
        enough = 1 + sum(given.values())
        return {symbol: given.get(symbol, enough) for symbol in self._symbols}

    def _holding(self, values: Mapping[sympy.Symbol, int]) -> _Evaluated:
        traced = self._found.traced
        for each in traced:
            if each.holds(values):
                return each
        found = _Evaluated(trace_cost(self._graph, self.specs, values))
        traced.append(found)
        return found


@dataclass
class _Found:
    """What was counted of equal graphs: expressions, and costs by sizes."""

    traced: list[_Evaluated] = field(default_factory=list)
    costs: dict[Sizes, Cost] = field(default_factory=dict)


_found_by = one_per_key(_Found)


class _Evaluated:
    """Expressions as Python functions."""

    def __init__(self, found: CostExpressions) -> None:
        self.found = found
        self._symbols = found.symbols
        costs = (found.flops, found.bytes_fused, found.bytes_unfused)
        self._costs = [_function(self._symbols, cost) for cost in costs]
        self._conditions = [_function(self._symbols, condition) for condition in found.conditions]

    def holds(self, values: Mapping[sympy.Symbol, int]) -> bool:
        given = [values[symbol] for symbol in self._symbols]
        return all(condition(*given) for condition in self._conditions)

    def cost(self, values: Mapping[sympy.Symbol, int]) -> Cost:
        given = [values[symbol] for symbol in self._symbols]
        return Cost(*(int(cost(*given)) for cost in self._costs))


def _function(symbols: tuple[sympy.Symbol, ...], expression: Expression) -> Callable[..., Any]:
    """The value of an expression or a relation at integers, exact."""
    parts = expression.args if expression.is_Relational else (expression,)
    if all(isinstance(part, sympy.Expr) and part.is_polynomial(*symbols) for part in parts):
        # Integer coefficients only: Python's integers make this exact.
        return sympy.lambdify(symbols, expression, modules="math")  # type: ignore[no-any-return]
    return lambda *given: expression.xreplace(
        {symbol: sympy.Integer(value) for symbol, value in zip(symbols, given, strict=True)}
    )
