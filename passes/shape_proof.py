"""Proves the shapes of a rewritten block: it runs on fake tensors, K unlike every other size.

A node whose rows were forgotten, or dropped twice, meets L rows where K are expected, and no size that is
equal by chance hides it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import sympy
import torch
from torch import fx

from .._torch_private import SymbolicInputs, fake_run
from ..analysis.block_facts import BlockFacts
from ..analysis.graph_sizes import graph_specs, traced_sizes
from ..analysis.operators import flat_arguments
from ..analysis.reasons import Reason, Unsupported
from ..analysis.run_key import one_per_key, run_key
from ..analysis.shapes import as_size, dtype_of, shape_of, size_of, value_of
from ..input_specs import IMAGES, KEPT, OFFSET, InputSpec, at_sizes
from .row_plan import BlockArm, GatherAt, RowPlan

Values = dict[sympy.Symbol, int]


def prove_shapes(source: fx.Graph, facts: BlockFacts, arm: BlockArm, plan: RowPlan) -> None:
    """Run `arm` at sizes that are all different.

    Args:
        source: the block as traced.
        facts: what is known of it.
        arm: the block under `plan`.
        plan: what was done with its rows.

    Raises:
        Unsupported: an operator refuses its operands, or a result has another shape or type than it must.
    """
    specs = graph_specs(arm.graph.graph)
    failure = ""
    for values in (_distinct(specs, source, facts), _as_traced(specs, source, facts)):
        try:
            results = _results(arm.graph, [at_sizes(spec, values) for spec in specs])
        except Exception as error:  # whatever an operator raises says that its shapes do not fit
            failure = failure or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        found = [result.shape for result in results]
        expected = list(_expected(facts, plan, values))
        if found != expected:
            raise Unsupported(Reason.SHAPE_PROOF, facts.exit, f"{plan}: shapes {found}, expected {expected}")
        if results[0].dtype != dtype_of(facts.hidden):
            raise Unsupported(Reason.SHAPE_PROOF, facts.exit, f"{plan}: the result is {results[0].dtype}")
        return
    raise Unsupported(Reason.SHAPE_PROOF, facts.exit, f"{plan}: {failure}")


class _Result(NamedTuple):
    """Of a graph."""

    shape: tuple[int, ...]
    dtype: torch.dtype


# Of graphs that ran; those of equal ones are the same.
_ran: Callable[[Hashable | None], list[_Result]] = one_per_key(list)


def _results(graph: fx.GraphModule, specs: Sequence[InputSpec]) -> list[_Result]:
    """What a graph returns for inputs of these sizes, which are numbers; whatever its operators raise."""
    known = _ran(run_key(graph, specs))
    if not known:
        result: Any = fake_run(graph, SymbolicInputs(specs, {}))
        parts = result if isinstance(result, tuple) else (result,)
        # In one go: other threads may prove an equal graph.
        known[:] = [_Result((*map(int, part.shape),), part.dtype) for part in parts]
    return known


def _expected(facts: BlockFacts, plan: RowPlan, values: Values) -> Iterator[tuple[int, ...]]:
    rows, length, width = (int(size.xreplace(values)) for size in shape_of(facts.hidden))
    yield rows, length, width
    if plan.entropy:
        some = plan.gather_at in (GatherAt.BLOCK_INPUT, GatherAt.QUERY)
        yield rows, values[KEPT] if some else length
    if plan.select is not None:
        yield rows, values[KEPT]
    if plan.queries:
        assert facts.attention is not None
        kept = plan.gather_at in (GatherAt.BLOCK_INPUT, GatherAt.QUERY)
        shape = shape_of(facts.attention.query)
        heads = shape[1] if facts.attention.heads_first else shape[2]
        yield rows, int(heads), values[KEPT] if kept else length, int(shape[3])


def _distinct(specs: list[InputSpec], source: fx.Graph, facts: BlockFacts) -> Values:
    """A size for every symbol, none equal to another or to a constant of the inputs."""
    symbols: set[sympy.Symbol] = set().union(*(spec.symbols for spec in specs))
    taken = {int(size) for spec in specs for size in spec.shape or () if size.is_Integer}
    slots = [shape_of(write.cache)[write.axis] for write in facts.writes]
    fixed = [int(size) for size in slots if size.is_Integer]

    def largest_below(limit: int) -> int:
        free = next((size for size in range(limit - 1, 1, -1) if size not in taken), limit - 1)
        taken.add(free)
        return free

    if facts.length.is_Integer:
        length = int(facts.length)
        room = min(fixed, default=2 * length + 64)
        values = _beside(_constants(source), length, room, facts)
        taken.add(values[KEPT])
    else:
        room = min(fixed, default=64)
        offset = 1 if room > 3 else 0
        length = largest_below(room - offset)
        values = {KEPT: largest_below(length), OFFSET: offset}
        (tokens,) = facts.length.free_symbols
        values[tokens] = length
    rows = shape_of(facts.hidden)[0]
    if rows.is_Symbol:
        values[rows] = next(size for size in range(6, 99, 2) if size not in taken)
    values[IMAGES] = max(1, int(rows.xreplace(values)) // 2)
    _meet_start(values, facts)
    for spec in specs:
        # A number that comes in is a place in the schedule: the end of this scale, if nothing else is known.
        if spec.value is not None and spec.value.is_Symbol:
            values.setdefault(spec.value, values[OFFSET] + length)
    larger = room + values[OFFSET] + 1
    for symbol in sorted(symbols - values.keys(), key=str):
        while larger in taken:
            larger += 1
        values[symbol] = larger
        taken.add(larger)
    return values


def _beside(constants: set[int], length: int, room: int, facts: BlockFacts) -> Values:
    """K and the first cache row where the token count is a number: K is no other number of the graph.

    All that counts is that sizes differ: where every smaller number is taken, K is larger than L.
    """
    start = size_of(facts.writes[0].start) if facts.writes else None
    offset = min(1, room - length)
    if start is not None and start.is_Integer:
        # A value per key is as long as the trace had keys.
        offset = int(start) if facts.position_of_keys else min(1, int(start))
    fewer, more = range(length - 1, 1, -1), range(length + 1, room - offset + 1)
    kept = next((size for size in (*fewer, *more) if size not in constants), max(1, length - 1))
    return {KEPT: kept, OFFSET: offset}


def _constants(graph: fx.Graph) -> set[int]:
    """The numbers among the sizes and the arguments of a graph."""
    found = {entry for node in graph.nodes for entry in flat_arguments(node) if isinstance(entry, int)}
    values = [value_of(node) for node in graph.nodes]
    sizes = [as_size(size) for value in values if isinstance(value, torch.Tensor) for size in value.shape]
    return found | {int(size) for size in sizes if size.is_Integer}


def _meet_start(values: Values, facts: BlockFacts) -> None:
    """Choose the symbols in the traced first rows of the caches so that these are the offset."""
    for write in facts.writes:
        start = size_of(write.start)
        if start is None:
            continue
        unknown = sorted(start.free_symbols - values.keys(), key=str)
        if len(unknown) == 1:
            (symbol,) = unknown
            solutions = sympy.solve(start.xreplace(values) - values[OFFSET], symbol)
            if len(solutions) == 1 and solutions[0].is_Integer:
                values[symbol] = int(solutions[0])


def _as_traced(specs: list[InputSpec], source: fx.Graph, facts: BlockFacts) -> Values:
    """The sizes of the trace, where others break a relation that the model keeps between them."""
    values = traced_sizes(source)
    taken = {*values.values(), *(int(size) for spec in specs for size in spec.shape or () if size.is_Integer)}
    length = int(facts.length.xreplace(values))
    start = size_of(facts.writes[0].start) if facts.writes else None
    values[OFFSET] = 0 if start is None else int(start.xreplace(values))
    values[KEPT] = next((size for size in range(length - 1, 1, -1) if size not in taken), max(1, length - 1))
    values[IMAGES] = max(1, int(shape_of(facts.hidden)[0].xreplace(values)) // 2)
    for symbol in set().union(*(spec.symbols for spec in specs)) - values.keys():
        values[symbol] = values[OFFSET] + length
    return values
