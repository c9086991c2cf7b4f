"""Inductor on a graph that Dynamo captured and the passes rewrote: `compile_fx`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import fx
from torch._guards import TracingContext, tracing

from .fake_runs import symbolic_values
from .graphs import add_inputs, clone_graph
from .symbolic_inputs import SymbolicInputs

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

    settings = {**(config or {}), **({"fx_graph_cache": False} if inputs.unreadable else {})}
    copied, values = clone_graph(graph), [*inputs.values, *inputs.unnamed_values]
    # AOTAutograd's disk cache takes method calls only on what has a value, as everything in Dynamo's graphs.
    for node, value in symbolic_values(copied, inputs).items():
        node.meta["example_value"] = value
    add_inputs(copied, len(inputs.unnamed))
    with (
        _COMPILE_LOCK,
        torch.inference_mode(False),
        torch.no_grad(),
        tracing(TracingContext(inputs.mode)),
        rows_in_one_pass() as choices,
    ):
        call = compile_fx(copied, values, config_patches={**choices, **settings})  # type: ignore[arg-type]
        assert callable(call)
        return CompiledGraph(call, inputs.guards(), inputs.unnamed)


def compile_with_dynamo_inputs(
    graph: fx.GraphModule, example_inputs: Sequence[object]
) -> Callable[..., object]:
    """Compile a graph as the plain Inductor backend would, inside Dynamo's own compilation."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph, example_inputs)  # type: ignore[arg-type, return-value]


def without_dynamo_wrapper(call: Callable[..., object]) -> Callable[..., object]:
    """The function beneath the wrapper that keeps Dynamo from tracing it.

    For callers that Dynamo has put into such a wrapper themselves.
    """
    return getattr(call, "_torchdynamo_orig_callable", call)
