"""Every private torch interface that the backend touches (torch 2.11 to 2.14), in one place.

What is used and why:
- `compile_fx`: Inductor on a graph that Dynamo captured and the passes rewrote.
- `ShapeEnv`, `FakeTensorMode`, `create_symbol`: block graphs get size symbols of their own (tokens L, kept
  tokens K, cache offset), which no Dynamo input could provide. Their guards are kept and evaluated before
  each new size.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import fx
from torch._dynamo.source import LocalSource
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from .lowering.sizes import IMAGES, OFFSET, InputSpec

log = logging.getLogger(__name__)

_COMPILE_LOCK = threading.RLock()


class SymbolicInputs:
    """Fake inputs of a block graph with symbolic sizes.

    Args:
        specs: one per input.
        hints: a value per size symbol, the size that code generation is tuned for.
    """

    def __init__(self, specs: Sequence[InputSpec], hints: Mapping[sympy.Symbol, int]) -> None:
        self._environment = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self._environment)
        self._known: dict[sympy.Expr, sympy.Expr] = {}
        self.values = [self._fake(spec, hints) for spec in specs]

    def _fake(self, spec: InputSpec, hints: Mapping[sympy.Symbol, int]) -> object:
        if spec.value is not None:
            return self._size(spec.value, hints)
        assert spec.shape is not None and spec.stride is not None
        # Fake values made in inference mode could not be written to while the graph is traced.
        with torch.inference_mode(False), self.mode:
            return torch.empty_strided(
                [self._size(size, hints) for size in spec.shape],
                [self._size(step, hints) for step in spec.stride],
                dtype=spec.dtype,
                device=spec.device,
            )

    def _size(self, expression: sympy.Expr, hints: Mapping[sympy.Symbol, int]) -> int | torch.SymInt:
        if expression.is_Integer:
            return int(expression)
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in self._known:
                self._known[symbol] = self._environment.create_symbol(
                    hints[symbol],
                    LocalSource(f"toprovar_{symbol}"),
                    dynamic_dim=DimDynamic.DYNAMIC,
                    do_not_specialize_zero_one=symbol in (OFFSET, IMAGES),
                )
        own = expression.xreplace(self._known)
        hint = int(
            expression.xreplace({symbol: sympy.Integer(hints[symbol]) for symbol in expression.free_symbols})
        )
        source = LocalSource(f"toprovar_{expression}") if isinstance(expression, sympy.Symbol) else None
        return self._environment.create_symintnode(own, hint=hint, source=source)

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
            return not code or bool(environment.evaluate_guards_expression(code, arguments))

        return holds


@dataclass(frozen=True)
class CompiledGraph:
    """An Inductor-compiled graph and the check for the sizes that it holds for."""

    call: Callable[..., object]
    holds: Callable[[Sequence[object], Mapping[sympy.Symbol, int]], bool]


def compile_with_inductor(
    graph: fx.GraphModule, inputs: SymbolicInputs, config: Mapping[str, object] | None = None
) -> CompiledGraph:
    """Compile a copy of `graph` for `inputs`; Inductor settings apply to this call alone."""
    with (
        _COMPILE_LOCK,
        torch.inference_mode(False),
        torch.no_grad(),
        tracing(TracingContext(inputs.mode)),
    ):
        call = compile_fx(clone_graph(graph), inputs.values, config_patches=dict(config or {}))  # type: ignore[arg-type]
        assert callable(call)
        return CompiledGraph(call, inputs.guards())


def compile_with_dynamo_inputs(
    graph: fx.GraphModule, example_inputs: Sequence[object]
) -> Callable[..., object]:
    """Compile a graph as the plain Inductor backend would, inside Dynamo's own compilation."""
    return compile_fx(graph, example_inputs)  # type: ignore[arg-type, return-value]


def clone_graph(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy whose nodes carry no values of another tracing session."""
    copied = fx.Graph()
    output = copied.graph_copy(graph.graph, {})
    if isinstance(output, tuple):
        copied.output(tuple(output))
    else:
        copied.output((output,))
    for node in copied.nodes:
        for name in ("example_value", "val", "toprovar_spec", "grapharg"):
            node.meta.pop(name, None)
    return fx.GraphModule(graph, copied)


def fake_run(graph: fx.GraphModule, inputs: SymbolicInputs) -> None:
    """Run a graph on fake tensors, for shapes and for dispatch modes that count operations."""
    with torch.inference_mode(False), torch.no_grad(), inputs.mode:
        graph(*inputs.values)
