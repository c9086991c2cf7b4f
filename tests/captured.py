"""Graphs of plain functions, and one that writes a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx


def captured(function: Any, *tensors: Tensor) -> fx.GraphModule:
    """The graph that Dynamo captures of a function."""
    graphs: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, inputs: object) -> Any:
        graphs.append(gm)
        return gm.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, fullgraph=True)(*tensors)
    return graphs[0]


def writes_its_cache(cache: Tensor, rows: Tensor) -> Tensor:
    """It may run twice: what it writes it does not read before, and what it changes is its own."""
    cache[:, 0:2] = rows
    y = rows + 1
    y.mul_(2)
    torch._foreach_add_([y, rows - 1], 1)
    y.chunk(2)[1].add_(1)
    return cache[:, :2] + y
