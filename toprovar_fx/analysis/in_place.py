"""Writes in place: which of them a block may do, and which forbid to move a block's nodes together.

Rows are chosen by copies. A write to what was copied before does not reach the copy, and one to the copy does
not reach the original, so a value that is written must be whole, or chosen, during all of its life.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import fx

from .contexts import is_context
from .facts import BlockFacts
from .operators import operator_name
from .reasons import Reason, Unsupported
from .shapes import size_of, value_of
from .writes import memory_of, written

# Where gradients are on nothing is pruned.
_HARMLESS = frozenset({"_set_grad_enabled", "_exit_inference_mode"})


def refuse_writes(facts: BlockFacts) -> None:
    """Refuse a block that writes in place to more than its caches and values of its own.

    Args:
        facts: all that is known of it.

    Raises:
        Unsupported: `IN_PLACE_WRITE`.
    """
    graph = facts.hidden.graph
    order = {node: at for at, node in enumerate(graph.nodes)}
    paired = {operand for found in facts.transfers.values() for operand, _ in found.tables}
    paired |= {operand for found in facts.key_tables.values() for operand, _ in found}
    tables = {memory_of(operand) for operand in paired}
    begin = None if facts.attention is None else order[facts.attention.entry]
    caching = {write.node for write in facts.writes}
    for node in graph.nodes:
        for memory in () if node in caching else written([node]):
            if memory.op in ("placeholder", "get_attr"):
                raise Unsupported(Reason.IN_PLACE_WRITE, node, f"{memory.name} comes from outside the block")
            if memory in tables:
                raise Unsupported(Reason.IN_PLACE_WRITE, node, f"{memory.name} is paired with tokens")
            if memory not in facts.axes and any(operand in facts.axes for operand in node.all_input_nodes):
                raise Unsupported(Reason.IN_PLACE_WRITE, node, f"{memory.name} has no tokens")
            if memory in facts.axes and begin is not None and order[memory] < begin < order[node]:
                detail = f"{memory.name} is computed before attention and written behind it"
                raise Unsupported(Reason.IN_PLACE_WRITE, node, detail)


def refuse_moved_writes(graph: fx.Graph, runs: Sequence[Collection[fx.Node]]) -> None:
    """Refuse a step whose nodes cannot be moved together, run by run, because one of them writes in place.

    Each run takes place where its last node is. A node between its nodes that is none of them comes before
    it, so it must not write what the run read before, nor read what the run wrote before.

    Raises:
        Unsupported: `IN_PLACE_WRITE`; `NO_BLOCK` for a node that changes how those behind it compute.
    """
    nodes = list(graph.nodes)
    order = {node: at for at, node in enumerate(nodes)}
    for run in runs:
        members, places = set(run), [order[node] for node in run]
        used: set[fx.Node] = set()
        changed: set[fx.Node] = set()
        for node in nodes[min(places) : max(places) + 1]:
            reads, writes = {memory_of(operand) for operand in node.all_input_nodes}, written([node])
            if _sets_state(node):
                detail = f"{operator_name(node)} changes how what follows computes, and lies inside a layer"
                raise Unsupported(Reason.NO_BLOCK, node, detail)
            if node in members:
                used |= reads
                changed |= writes
            elif (
                size_of(node) is None and operator_name(node) != "size" and (writes & used or reads & changed)
            ):
                detail = "it would run before the layer around it, which uses the same memory"
                raise Unsupported(Reason.IN_PLACE_WRITE, node, detail)


def refuse_aliased_writes(inputs: Sequence[fx.Node], nodes: Sequence[fx.Node]) -> None:
    """Refuse nodes as a graph of their own that writes to memory in which several of its inputs lie.

    A compiler of that graph takes its inputs for apart, and may read one before it writes the other.

    Args:
        inputs: of the graph.
        nodes: in execution order.

    Raises:
        Unsupported: `IN_PLACE_WRITE`.
    """
    tensors = [node for node in inputs if isinstance(value_of(node), torch.Tensor)]
    for memory in written(nodes):
        within = [node for node in tensors if _storage(memory_of(node)) == _storage(memory)]
        if len(within) > 1:
            names = ", ".join(node.name for node in within)
            raise Unsupported(Reason.IN_PLACE_WRITE, memory, f"{names} share the memory that a layer writes")


def _storage(memory: fx.Node) -> object:
    """What tells whether values made by two nodes lie in one storage."""
    value = value_of(memory)
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else memory


def _sets_state(node: fx.Node) -> bool:
    """Whether a node is called for its effect on torch itself, as at both ends of `sdpa_kernel`."""
    if node.op != "call_function" or node.users or is_context(node) or operator_name(node) in _HARMLESS:
        return False
    return all(value_of(each) is None for each in (node, *node.all_input_nodes))
