"""A block graph made callable: as traced, or compiled on first use and checked before each new size."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from torch import fx

from .._torch_private import CompiledGraph, SymbolicInputs, compile_with_inductor, graph_to_read, restarts
from ..analysis.graph_sizes import graph_specs
from ..analysis.reasons import Fallback, Reason
from ..analysis.writes import written
from ..cost.expressions import Cost, GraphCosts, Sizes
from ..input_specs import at_sizes
from .for_device import for_device
from .rows_in_place import with_rows_in_place
from .size_reader import SizeReader

log = logging.getLogger(__name__)


class Region:
    """A callable block graph.

    Args:
        graph: inputs and outputs as the pass that made it says.
        lowering: "eager" runs the graph as traced; "inductor" compiles it with symbolic sizes.
        hints: sizes that code generation is tuned for, by symbol name; sizes without a hint use the first
            call's.
        name: what it is, in a word or two, for `explain`.
        static: compile for every size apart, as numbers.
        on_failure: told at every call that runs as traced because a compilation failed; without it the
            compiler's error is raised.

    Attributes:
        specs: sizes and kinds of the inputs.
        written: positions of the inputs that the graph writes to (caches).
        compile_seconds: time of each compilation so far.
        costs: FLOPs and bytes as expressions in the sizes.
        size_reader: reads the sizes off the arguments.
        failure: why the graph cannot be compiled, or None.
        forms: other forms of the graph that were made, by name; the regions in them are `variants`.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        lowering: str,
        hints: Mapping[str, int] | None = None,
        name: str = "graph",
        static: bool = False,
        on_failure: Callable[[Fallback], None] | None = None,
    ) -> None:
        self.graph, self.name = graph, name
        self.specs = graph_specs(graph.graph)
        self.written = _written(graph.graph)
        self.size_reader = SizeReader(self.specs)
        self.compile_seconds: list[float] = []
        self._lowering, self._static, self._on_failure = lowering, static, on_failure
        self.failure: Fallback | None = None
        self._hints = dict(hints or {})
        self.forms: dict[str, tuple[Any, ...]] = {}
        self._compiled: list[CompiledGraph] = []
        self._chosen: dict[Sizes, Callable[..., Any]] = {}
        self.costs = GraphCosts(graph)
        outputs = next(node for node in reversed(graph.graph.nodes) if node.op == "output").args[0]
        self._single = isinstance(outputs, fx.Node)

    def __call__(self, *arguments: Any) -> Any:
        """Run the graph."""
        if self._lowering == "eager":
            return self.graph(*arguments)
        key = self.sizes(arguments)
        call = self._chosen.get(key)
        if call is None:
            call = self._chosen[key] = self._choose_or_trace(arguments, dict(key))
        if self.failure is not None and self._on_failure is not None:
            self._on_failure(self.failure)
        result = call(*arguments)
        return result[0] if self._single else result

    def rows_in_place(self) -> Region | None:
        """The same for a hidden state that nobody needs any more (`with_rows_in_place`), or None."""
        if "in place" not in self.forms:
            graph = with_rows_in_place(self.graph)
            self.forms["in place"] = () if graph is None else (self.alike(graph, "in place"),)
        return next(iter(self.forms["in place"]), None)

    def alike(self, graph: fx.GraphModule, how: str) -> Region:
        """A region of another graph with the settings of this one."""
        given = self._lowering, self._hints, f"{self.name}, {how}", self._static, self._on_failure
        return Region(graph, *given)

    @property
    def variants(self) -> list[Region]:
        """This region, and what was made of it."""
        made = (each for form in self.forms.values() for each in form if isinstance(each, Region))
        return [self, *(variant for region in made for variant in region.variants)]

    def sizes(self, arguments: tuple[Any, ...]) -> Sizes:
        """Values of the size symbols at these arguments."""
        return self.size_reader(arguments)

    def sizes_from(self, values: Mapping[sympy.Symbol, int]) -> Sizes:
        """What `sizes` gives for a call of these sizes."""
        return self.size_reader.taken_from(values)

    def _choose_or_trace(
        self, arguments: tuple[Any, ...], sizes: Mapping[sympy.Symbol, int]
    ) -> Callable[..., Any]:
        """The compiled graph for these sizes; once it failed to compile, the traced one for all sizes."""
        if self.failure is not None:
            return self._as_traced
        try:
            return self._choose(arguments, sizes)
        except Exception as error:  # of a compiler, whatever its fault is: the traced graph computes the same
            if self._on_failure is None or isinstance(error, restarts()):
                raise
            self.failure = not_compiled(self.name, error)
            self._chosen = dict.fromkeys(self._chosen, self._as_traced)
            return self._as_traced

    def _as_traced(self, *arguments: Any) -> tuple[Any, ...]:
        return _as_tuple(self.graph(*arguments))

    def _choose(self, arguments: tuple[Any, ...], sizes: Mapping[sympy.Symbol, int]) -> Callable[..., Any]:
        if self._static:
            return self._compile_at(sizes)
        for compiled in self._compiled:
            if compiled.holds(arguments, sizes):
                return compiled.at(sizes)
        # The first compilation is tuned for the largest sizes to come, a second for what the first refused.
        if not self._compiled:
            compiled = self._compile_for_the_largest(sizes)
            if compiled.holds(arguments, sizes):
                return compiled.at(sizes)
        compiled = self._compile(dict(sizes))
        if compiled.holds(arguments, sizes):
            return compiled.at(sizes)
        log.warning("sizes %s do not hold for any compilation of this block; it runs as traced", dict(sizes))
        return self._as_traced

    def _compile_for_the_largest(self, sizes: Mapping[sympy.Symbol, int]) -> CompiledGraph:
        largest = {symbol: max(size, self._hints.get(str(symbol), size)) for symbol, size in sizes.items()}
        try:
            return self._compile(largest)
        except Exception as error:
            # A size without a hint may depend on one with a hint: a table that is cut to the scale's length.
            if largest == sizes:
                raise
            log.info("%s is tuned for its first sizes, not for %s: %s", self.name, largest, error)
            return self._compile(dict(sizes))

    def _compile(self, hints: Mapping[sympy.Symbol, int]) -> CompiledGraph:
        started = time.perf_counter()
        missing = {symbol for spec in self.specs for symbol in spec.symbols} - hints.keys()
        compiled = compile_with_inductor(
            for_device(self.graph), SymbolicInputs(self.specs, {**hints, **dict.fromkeys(missing, 64)})
        )
        self._compiled.append(compiled)
        self.compile_seconds.append(time.perf_counter() - started)
        log.info("compiled %s for %s in %.1f s", self.name, dict(hints), self.compile_seconds[-1])
        return compiled

    def _compile_at(self, sizes: Mapping[sympy.Symbol, int]) -> Callable[..., Any]:
        """Compile with every size a number, integer inputs included."""
        started = time.perf_counter()
        specs = [at_sizes(spec, dict(sizes)) for spec in self.specs]
        numbers = {at: int(spec.value) for at, spec in enumerate(specs) if spec.value is not None}
        tensors = [at for at in range(len(specs)) if at not in numbers]
        inputs = SymbolicInputs([specs[at] for at in tensors], {})
        call = compile_with_inductor(with_constants(for_device(self.graph), numbers), inputs).call
        self.compile_seconds.append(time.perf_counter() - started)
        log.info("compiled %s at %s in %.1f s", self.name, dict(sizes), self.compile_seconds[-1])
        return lambda *arguments: call(*(arguments[at] for at in tensors))

    def flops(self, sizes: Sizes) -> int:
        """Floating-point operations of one call at these sizes."""
        return self.cost(sizes).flops

    def cost(self, sizes: Sizes) -> Cost:
        """FLOPs and bytes of one call at these sizes."""
        return self.costs.at(sizes)


def not_compiled(name: str, error: Exception) -> Fallback:
    """What a compiler's error says, in a line."""
    message = next(iter(str(error).strip().splitlines()), "")
    return Fallback(Reason.NOT_COMPILED, detail=f"{name}: {type(error).__name__}: {message}")


def with_constants(graph: fx.GraphModule, numbers: Mapping[int, int]) -> fx.GraphModule:
    """A copy of a graph in which the placeholders at these positions are numbers."""
    copied = fx.Graph()
    mapped: dict[fx.Node, Any] = {}
    holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    constants = {holders[at]: number for at, number in numbers.items()}
    for node in graph.graph.nodes:
        if node.op == "output":
            copied.output(fx.map_arg(node.args[0], lambda operand: mapped[operand]))
        elif node in constants:
            mapped[node] = constants[node]
        else:
            mapped[node] = copied.node_copy(node, lambda operand: mapped[operand])
    return graph_to_read(graph, copied)


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _written(graph: fx.Graph) -> frozenset[int]:
    """Positions of the inputs whose memory the graph may write to, through views of them too."""
    memory = written(graph.nodes)
    return frozenset(
        at for at, node in enumerate(n for n in graph.nodes if n.op == "placeholder") if node in memory
    )
