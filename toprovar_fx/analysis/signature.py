"""The structure of a run of nodes, names aside: where it is equal, one compiled graph serves both.

Names of size symbols count as little as names of nodes: when a resolution changes, Dynamo gives the cache of
every layer a symbol of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import sympy
import torch
from torch import fx

from .operators import fetched_graph
from .shapes import Size, as_size, value_of


def external_inputs(entry: fx.Node, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Values that `nodes` use but do not compute, `entry` first, then in order of first use."""
    members = set(nodes)
    found = [entry]
    for node in nodes:
        for operand in node.all_input_nodes:
            if operand not in members and operand not in found:
                found.append(operand)
    return found


def signature(entry: fx.Node, nodes: Sequence[fx.Node]) -> Hashable:
    """Operators, constants, wiring and input kinds of a run of nodes."""
    inputs = external_inputs(entry, nodes)
    symbols: dict[sympy.Symbol, sympy.Symbol] = {}
    return tuple(_kind(node, symbols) for node in inputs), wiring([*inputs, *nodes], len(inputs))


def wiring(nodes: Sequence[fx.Node], inputs: int) -> Hashable:
    """What nodes call and which of them are whose operands; the first ones are inputs."""
    number = {node: at for at, node in enumerate(nodes)}

    def key(value: object) -> Hashable:
        if isinstance(value, fx.Node):
            return ("node", number[value])
        if isinstance(value, (tuple, list)):
            return (type(value).__name__, tuple(key(entry) for entry in value))
        if isinstance(value, slice):
            return ("slice", key(value.start), key(value.stop), key(value.step))
        if isinstance(value, dict):
            return ("dict", tuple((name, key(entry)) for name, entry in sorted(value.items())))
        return (type(value).__name__, value if isinstance(value, Hashable) else repr(value))

    return tuple((node.op, _target(node), key(node.args), key(node.kwargs)) for node in nodes[inputs:])


def _target(node: fx.Node) -> Hashable:
    """What a node calls; the graph of a higher-order operator that it fetches counts by what it computes."""
    graph = fetched_graph(node)
    if graph is None or any(inner.op in ("get_attr", "call_module") for inner in graph.graph.nodes):
        return node.target
    nodes = list(graph.graph.nodes)
    return wiring(nodes, sum(inner.op == "placeholder" for inner in nodes))


def _kind(node: fx.Node, symbols: dict[sympy.Symbol, sympy.Symbol]) -> Hashable:
    """Type and sizes of an input; `symbols` numbers the size symbols in the order in which they appear."""

    def size(value: object) -> Size:
        own = as_size(value)
        free = own.free_symbols
        for symbol in sorted(free, key=str) if free - symbols.keys() else ():
            symbols.setdefault(symbol, sympy.Symbol(f"n{len(symbols)}"))
        return own.xreplace(symbols) if free else own

    value = value_of(node)
    if isinstance(value, torch.Tensor):
        sizes = tuple(map(size, value.shape)), tuple(map(size, value.stride()))
        return "tensor", str(value.dtype), str(value.device), sizes
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return "size", size(value)
    return type(value).__name__, str(value)
