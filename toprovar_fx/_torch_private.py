"""Every private torch interface that the backend touches (torch 2.11 to 2.14), in one place.

What is used and why:
- `compile_fx`: Inductor on a graph that Dynamo captured and the passes rewrote.
- `ShapeEnv`, `FakeTensorMode`, `create_symbol`: block graphs get size symbols of their own (tokens L, kept
  tokens K, cache offset), which no Dynamo input could provide. Their guards are kept and evaluated before
  each new size.
- `SymNode.expr` and the environment's guards, ranges and replacements: what a run on such inputs computed of
  sizes, as sympy expressions, and for which sizes that holds.
- `torch.ops.higher_order.cond`: `torch.cond` as a node of a graph that a pass builds.
- `torch.ops.higher_order.flex_attention`, `TransformGetItemToIndex`, `_FlopCounterMode`: FlexAttention as a
  node of a graph, what its `score_mod` computes of all scores at once, its operations in torch's count.
- `TorchDispatchMode`, operator schemas and storage identities: which operators ran, what they read and write.
- `torch._dynamo.exc`: what Dynamo raises when it cannot trace a function, told from what the function raises.
- `_foreach_copy_` and `_version`: many copies in few launches, and whether a tensor was written since.
- `registry`: whether torch was asked for the backend by its name.
- `torch._dynamo.config.patch`: how many graphs of one function there may be.
- `maybe_mark_dynamic`: sizes that differ between two calls are symbols from the first trace on.
"""

from __future__ import annotations

import inspect
import logging
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import sympy
import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo import exc, maybe_mark_dynamic
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from torch._dynamo.backends import registry
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.source import LocalSource
from torch._dynamo.utils import counters, get_compilation_metrics
from torch._guards import CompileContext, TracingContext, tracing
from torch._inductor.compile_fx import compile_fx
from torch._logging._internal import LazyTraceHandler, trace_log, trace_structured
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._sympy.symbol import SymT, symbol_is_type
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

from .lowering.sizes import InputSpec, is_small

log = logging.getLogger(__name__)

_COMPILE_LOCK = threading.RLock()

DispatchMode = TorchDispatchMode

# (pred, true branch, false branch, operands): the node that Dynamo makes of `torch.cond`.
cond = torch.ops.higher_order.cond

# What Dynamo makes of the function of this name; its parameters: analysis/flex.py.
flex_attention = torch.ops.higher_order.flex_attention

# While it is entered, `table[index]` with a scalar tensor reads no number: `vmap` goes through it.
index_by_tensors = TransformGetItemToIndex

# Recompiling where a test forbade it is not among them.
TRACING_FAILURES: tuple[type[Exception], ...] = (
    exc.Unsupported,
    exc.InternalTorchDynamoError,
    exc.BackendCompilerFailed,
    exc.TorchRuntimeError,
    exc.FailOnRecompileLimitHit,
)


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
            return not code or bool(environment.evaluate_guards_expression(code, arguments))

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


@dataclass(frozen=True)
class CompiledGraph:
    """An Inductor-compiled graph and the check for the sizes that it holds for.

    Attributes:
        call: takes the graph's inputs, then the values of `unnamed`.
        holds: whether arguments of these sizes satisfy what the compilation assumed.
        unnamed: symbols that occur in sizes of tensors alone.
    """

    call: Callable[..., object]
    holds: Callable[[Sequence[object], Mapping[sympy.Symbol, int]], bool]
    unnamed: Sequence[sympy.Symbol] = ()

    def at(self, sizes: Mapping[sympy.Symbol, int]) -> Callable[..., object]:
        """The call for arguments of these sizes."""
        if not self.unnamed:
            return self.call
        call, more = self.call, [sizes[symbol] for symbol in self.unnamed]
        return lambda *arguments: call(*arguments, *more)


def compile_with_inductor(
    graph: fx.GraphModule, inputs: SymbolicInputs, config: Mapping[str, object] | None = None
) -> CompiledGraph:
    """Compile a copy of `graph` for `inputs`; Inductor settings apply to this call alone.

    Every size symbol becomes the value of an input, if need be of one that the graph does not read: Dynamo's
    graphs are like that, and Inductor's disk cache forgets what it assumed about any other symbol. Where the
    value of one cannot be told, that cache is not used.
    """
    settings = {**(config or {}), **({"fx_graph_cache": False} if inputs.unreadable else {})}
    copied, values = clone_graph(graph), [*inputs.values, *inputs.unnamed_values]
    add_inputs(copied, len(inputs.unnamed))
    with (
        _COMPILE_LOCK,
        torch.inference_mode(False),
        torch.no_grad(),
        tracing(TracingContext(inputs.mode)),
    ):
        call = compile_fx(copied, values, config_patches=settings)  # type: ignore[arg-type]
        assert callable(call)
        return CompiledGraph(call, inputs.guards(), inputs.unnamed)


def compile_with_dynamo_inputs(
    graph: fx.GraphModule, example_inputs: Sequence[object]
) -> Callable[..., object]:
    """Compile a graph as the plain Inductor backend would, inside Dynamo's own compilation."""
    return compile_fx(graph, example_inputs)  # type: ignore[arg-type, return-value]


def add_inputs(graph: fx.GraphModule, count: int) -> None:
    """Add inputs that nobody reads behind the others."""
    holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    behind = holders[-1] if holders else graph.graph._root
    for at in range(count):
        with graph.graph.inserting_after(behind):
            behind = graph.graph.placeholder(f"size_{at}")
    graph.recompile()


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


def fake_run(graph: fx.GraphModule, inputs: SymbolicInputs) -> object:
    """Run a graph on fake tensors, for shapes and for dispatch modes that count operations.

    Returns:
        The graph's fake result.
    """
    # Its cache compares symbolic shapes one by one and costs more than it saves in a single run.
    inputs.mode.cache_enabled = False
    # Composite operators, linear layers of torch 2.11 among them, know symbolic sizes in Python alone.
    with torch.inference_mode(False), torch.no_grad(), enable_python_dispatcher(), inputs.mode:
        return graph(*inputs.values)


class FlopCounter(FlopCounterMode):
    """torch's counter, which turns higher-order operators down, with those that it has a formula for."""

    def __enter__(self) -> FlopCounter:
        """Begin to count."""
        super().__enter__()
        assert self.mode is not None
        self.mode.__exit__(None, None, None)
        self.mode = _CountingMode(self)
        self.mode.__enter__()
        return self


class _CountingMode(_FlopCounterMode):
    def _handle_higher_order_ops(
        self, func: object, types: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        if func is not flex_attention:
            return super()._handle_higher_order_ops(func, types, args, kwargs)
        return self.counter._count_flops(func, flex_attention(*args, **kwargs), args, kwargs)


def symbolic_values(graph: fx.GraphModule, inputs: SymbolicInputs) -> dict[str, object]:
    """Fake values of all nodes by name, with the symbols that `inputs` was made with in their sizes' place.

    Returns:
        Tensors and sizes; the names of their symbols are looked up in `inputs.symbol_names`.
    """
    recorder = _Recorder(graph)
    with torch.inference_mode(False), torch.no_grad(), enable_python_dispatcher(), inputs.mode:
        recorder.run(*inputs.values)
    return recorder.values


class _Recorder(fx.Interpreter):
    """Keeps the value of every node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.values: dict[str, object] = {}

    def run_node(self, n: fx.Node) -> object:
        self.values[n.name] = result = super().run_node(n)
        return result


def depends_on_sizes(value: torch.SymFloat) -> bool:
    """Whether a number was computed from sizes of tensors, or from their contents."""
    symbols = value.node.expr.free_symbols
    return not value.node.has_hint() or not all(symbol_is_type(symbol, SymT.FLOAT) for symbol in symbols)


def hint_of(value: torch.SymFloat) -> float:
    """The number that a symbol stands for in this trace; nothing guards it."""
    return float(value.node.hint)


def compile_id() -> str | None:
    """Frame and count of Dynamo's compilation that runs, as "frame/count"; None outside of one.

    The count is 0 for the first compilation of a function's code and grows with every recompilation.
    """
    found = CompileContext.current_compile_id()
    return None if found is None else str(found)


@dataclass(frozen=True)
class FrameCompilation:
    """One compilation of a function's code by Dynamo.

    Attributes:
        code: "file:line name" of the function.
        reason: why an earlier compilation did not serve; None for the first one.
    """

    code: str
    reason: str | None


def frame_compilations() -> dict[str, FrameCompilation]:
    """The latest compilations of this process by compile id; torch keeps the last 64."""
    found = {}
    for metrics in get_compilation_metrics():
        if metrics.compile_id is not None and metrics.co_name is not None:
            file = (metrics.co_filename or "").replace("\\", "/").rpartition("/")[2]
            code = f"{file}:{metrics.co_firstlineno} {metrics.co_name}"
            reason = " ".join((metrics.recompile_reason or "").partition("\n")[0].split())
            found[metrics.compile_id] = FrameCompilation(code, reason or None)
    return found


def graph_breaks() -> dict[str, int]:
    """How often Dynamo cut a graph in this process, by its reason."""
    return dict(counters["graph_break"])


def trace_artifact(name: str, payload: Callable[[], str], encoding: str = "string") -> None:
    """Hand a text to torch's structured trace (`TORCH_TRACE`, read by tlparse); free unless tracing is on."""
    # Without a trace folder torch takes its handler away; others, such as a test runner's, want no text.
    if any(isinstance(handler, LazyTraceHandler) for handler in trace_log.handlers):
        trace_structured("artifact", lambda: {"name": name, "encoding": encoding}, payload_fn=payload)


def is_compiled(model: object) -> bool:
    """Whether `torch.compile` made `model`, or a part of it if it is a module."""
    parts = model.modules() if isinstance(model, torch.nn.Module) else [model]
    return any(hasattr(part, "_torchdynamo_orig_callable") or _is_wrapper(part) for part in parts)


def _is_wrapper(part: object) -> bool:
    compiled_call = getattr(part, "_compiled_call_impl", None)
    return isinstance(part, OptimizedModule) or compiled_call is not None


def with_dynamic_tokens(value: object) -> object:
    """A hidden state ``[R, L, C]`` as a view whose L Dynamo traces as a symbol from the first call on.

    In a loop over scales Dynamo finds out by itself at the second size. Anything else is returned as it is.
    """
    if not isinstance(value, torch.Tensor) or value.dim() != 3 or not value.is_floating_point():
        return value
    view = value.detach()
    maybe_mark_dynamic(view, 1)
    return view


def written_arguments(func: object, args: Sequence[object], kwargs: Mapping[str, object]) -> list[object]:
    """Arguments that a call of an operator overload writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return []
    found = []
    for at, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[at] if at < len(args) else kwargs.get(argument.name))
    return found


def parameter_names(target: object) -> tuple[str, ...]:
    """Names of an operator's parameters by its schema (the default overload's); none for a plain function."""
    schema = getattr(getattr(target, "default", target), "_schema", None)
    return () if schema is None else tuple(argument.name for argument in schema.arguments)


def storage_of(tensor: torch.Tensor) -> int:
    """Identity of a tensor's memory, shared by its views, for as long as one of them lives."""
    return tensor.untyped_storage()._cdata


def compile_apart(
    function: Callable[..., object], backend: Callable[..., object], options: dict[str, object], limit: int
) -> Callable[..., object]:
    """Compile a copy of `function` whose graphs and recompile limit are shared with no other function.

    Dynamo keeps its graphs by code object: two closures of one `def` would share them.

    Args:
        function: a plain Python function, traced without graph breaks.
        backend: as for `torch.compile`.
        options: as for `torch.compile`.
        limit: number of graphs; the next one is an error, not a silent eager run.
    """
    assert isinstance(function, types.FunctionType)
    own = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
    known = inspect.signature(torch.compile).parameters
    more = {"recompile_limit": limit} if "recompile_limit" in known else {}
    return torch.compile(own, fullgraph=True, backend=backend, options=options, **more)  # type: ignore[call-overload, no-any-return]


def varies(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """The same tensor, its size along `dimension` marked as one that differs between calls."""
    maybe_mark_dynamic(tensor, dimension)
    return tensor


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy many tensors of equal shapes and dtypes, in few launches."""
    by_dtype: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        group = by_dtype.setdefault(target.dtype, ([], []))
        group[0].append(target)
        group[1].append(source)
    for group in by_dtype.values():
        torch._foreach_copy_(*group)


def version_of(tensor: torch.Tensor) -> int | None:
    """A number that grows whenever a tensor is written to; None for tensors of inference mode."""
    return None if tensor.is_inference() else tensor._version


def named_as_backend(name: str) -> bool:
    """Whether `torch.compile` looked a backend up by this name in this process."""
    return name in registry._COMPILER_FNS


def recompile_limit(limit: int) -> AbstractContextManager[object]:
    """Let Dynamo make up to `limit` graphs of one function in the block."""
    patched: AbstractContextManager[object] = torch._dynamo.config.patch(recompile_limit=limit)
    return patched
