"""What a run of a graph on fake tensors follows from: equal graphs need not run twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import fx

from ..input_specs import InputSpec
from .signature import wiring

# Nodes that read what the graph module has besides its nodes.
_FETCHING = ("get_attr", "call_module")

# Keys of one kind that are remembered; a model has some ten graphs.
_MOST_KEYS = 512

T = TypeVar("T")


def run_key(graph: fx.GraphModule, specs: Sequence[InputSpec]) -> Hashable | None:
    """Equal for graphs that do the same with inputs of the same sizes, dtypes and devices.

    Args:
        graph: its functions count by identity, its symbols by name.
        specs: of its inputs.

    Returns:
        The key; None where a run may depend on more: on what the graph module holds, or on autocast.
    """
    nodes = list(graph.graph.nodes)
    devices = {spec.device.type for spec in specs if spec.device is not None}
    casting = filter(torch.amp.is_autocast_available, devices)
    if any(node.op in _FETCHING for node in nodes) or any(map(torch.is_autocast_enabled, casting)):
        return None
    inputs = sum(node.op == "placeholder" for node in nodes)
    return tuple(specs), torch.get_default_dtype(), wiring(nodes, inputs)


def one_per_key(make: Callable[[], T]) -> Callable[[Hashable | None], T]:
    """A function that gives every key a value of its own, made on first use, and None a new one each time."""

    @lru_cache(maxsize=_MOST_KEYS)
    def remembered(key: Hashable) -> T:
        return make()

    return lambda key: make() if key is None else remembered(key)
