"""Runs of a graph on fake tensors: shapes and sizes without data."""

from __future__ import annotations

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from .symbolic_inputs import SymbolicInputs


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


def symbolic_values(graph: fx.GraphModule, inputs: SymbolicInputs) -> dict[fx.Node, object]:
    """Fake values of all nodes, with the symbols that `inputs` was made with in their sizes' place.

    Returns:
        Tensors and sizes; the names of their symbols are looked up in `inputs.symbol_names`.
    """
    recorder, cached = _Recorder(graph), inputs.mode.cache_enabled
    environment = inputs.mode.shape_env
    assert environment is not None
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        enable_python_dispatcher(),
        inputs.mode,
        environment.ignore_fresh_unbacked_symbols(),
    ):
        # The graph may change the sizes of its inputs in place, which others will be given.
        own = [_like(value) for value in inputs.values]
        inputs.mode.cache_enabled = False
        try:
            recorder.run(*own)
        finally:
            inputs.mode.cache_enabled = cached
    return recorder.values


def _like(value: object) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=value.device)


class _Recorder(fx.Interpreter):
    """Keeps the value of every node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.values: dict[fx.Node, object] = {}

    def run_node(self, n: fx.Node) -> object:
        self.values[n] = result = super().run_node(n)
        return result
