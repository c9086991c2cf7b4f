"""Inductor on a graph that Dynamo captured and the passes rewrote: `compile_fx`."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import sympy
import torch
from torch import fx
from torch._guards import TracingContext, tracing

from .fake_runs import symbolic_values
from .graphs import add_inputs, clone_graph
from .symbolic_inputs import SymbolicInputs

log = logging.getLogger(__name__)

_COMPILE_LOCK = threading.RLock()


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
    from torch._inductor.compile_fx import compile_fx

    from .choices import rows_in_one_pass

    keep_kernels_together(inputs.values)
    settings = {**(config or {}), **({"fx_graph_cache": False} if inputs.unreadable else {})}
    copied, values = clone_graph(graph), [*inputs.values, *inputs.unnamed_values]
    _give_values(copied, inputs)
    add_inputs(copied, len(inputs.unnamed))
    with (
        _COMPILE_LOCK,
        torch.inference_mode(False),
        torch.no_grad(),
        tracing(TracingContext(inputs.mode)),
        rows_in_one_pass() as choices,
        torch.compiler.config.patch(cache_key_tag=_cache_key_tag(copied)),  # type: ignore[attr-defined]
    ):
        call = compile_fx(copied, values, config_patches={**choices, **settings})  # type: ignore[arg-type]
        assert callable(call)
        return CompiledGraph(call, inputs.guards(), inputs.unnamed)


def keep_kernels_together(inputs: Iterable[object]) -> None:
    """Have Triton keep its kernels in Inductor's folder, if any input is on CUDA.

    Inductor sets this variable where it makes its first kernel, but not where all of them come from disk:
    there Triton's driver and the kernels of this package would be looked for elsewhere, and compiled again.
    """
    from torch._inductor.runtime.cache_dir_utils import triton_cache_dir

    tensors = (value for value in inputs if isinstance(value, torch.Tensor) and value.is_cuda)
    first = next(tensors, None)
    if first is not None:
        os.environ.setdefault("TRITON_CACHE_DIR", triton_cache_dir(first.device.index or 0))


def _give_values(graph: fx.GraphModule, inputs: SymbolicInputs) -> None:
    """Note every node's value, without which AOTAutograd's disk cache takes no method call.

    A graph that has none, of sizes that depend on data say, goes past that cache.
    """
    try:
        values = symbolic_values(graph, inputs)
    except Exception as error:  # of any operator's fake implementation
        log.info("no values for AOTAutograd's cache: %s: %s", type(error).__name__, error)
        return
    for node, value in values.items():
        node.meta["example_value"] = value


def _cache_key_tag(graph: fx.GraphModule) -> str:
    """What compiled code on disk depends on besides its graph, which knows operators by name alone."""
    known = torch.compiler.config.cache_key_tag
    called = {node.target for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    schemas = sorted(str(target._schema) for target in called if target.namespace not in ("aten", "prims"))
    return f"{known} toprovar_fx {_operators_source()} {schemas}"


@cache
def _operators_source() -> str:
    folder = Path(__file__).resolve().parent.parent / "ops"
    return sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))).hexdigest()


def compile_with_dynamo_inputs(
    graph: fx.GraphModule, example_inputs: Sequence[object]
) -> Callable[..., object]:
    """Compile a graph as the plain Inductor backend would, inside Dynamo's own compilation."""
    from torch._inductor.compile_fx import compile_fx

    keep_kernels_together(example_inputs)
    return compile_fx(graph, example_inputs)  # type: ignore[arg-type, return-value]


def without_dynamo_wrapper(call: Callable[..., object]) -> Callable[..., object]:
    """The function beneath the wrapper that keeps Dynamo from tracing it.

    For callers that Dynamo has put into such a wrapper themselves.
    """
    return getattr(call, "_torchdynamo_orig_callable", call)
