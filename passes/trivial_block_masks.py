"""Takes out of a traced graph what `flex_attention` computes of the block mask that stands for none.

Torch makes such a mask where none is given, and lists its one block by query and by key under `torch.vmap`.
Only the backward pass reads the list by key, and a vmap region between two blocks could not be outlined.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from ..analysis.contexts import regions
from ..analysis.flex import given_to_flex, is_flex, masks_nothing
from ..analysis.operators import fetched_graph, operator_name, writes_in_place
from .step import copy_graph


def without_trivial_block_masks(traced: fx.GraphModule) -> fx.GraphModule:
    """The graph with the lists by key of trivial block masks replaced by those by query, which equal them.

    Every FlexAttention node also gets nodes of its own for the graphs that it is given: they move with it.

    Args:
        traced: Dynamo's graph (never changed).

    Returns:
        The graph, or `traced` itself where it has no FlexAttention.
    """
    if not any(is_flex(node) for node in traced.graph.nodes):
        return traced
    module = fx.GraphModule(traced, copy_graph(traced.graph))
    graph = module.graph
    for node in [node for node in graph.nodes if is_flex(node)]:
        given = given_to_flex(node)
        if masks_nothing(given["block_mask"]):
            _drop_lists_by_key(graph, node)
        with graph.inserting_before(node):
            node.args = fx.map_arg(node.args, lambda operand: _own(graph, operand))
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    graph.lint()
    return module


def _own(graph: fx.Graph, operand: fx.Node) -> fx.Node:
    return graph.node_copy(operand) if fetched_graph(operand) is not None else operand


def _drop_lists_by_key(graph: fx.Graph, node: fx.Node) -> None:
    mask = given_to_flex(node)["block_mask"]
    assert isinstance(mask, (tuple, list))
    by_query, by_key = mask[2:4], mask[6:8]
    left = [entry for entry in by_key if isinstance(entry, fx.Node)]
    if len(left) != 2 or any(set(entry.users) != {node} for entry in left):
        return
    dead = _computed_for(graph, left, by_query)
    if not all(user in dead or user is node for entry in dead for user in entry.users):
        return
    if not all(entry.args[0] in dead for entry in dead if _writes(entry)):
        return
    replaced = dict(zip(left, by_query, strict=True))
    node.args = fx.map_arg(node.args, lambda operand: replaced.get(operand, operand))
    for entry in [entry for entry in reversed(graph.nodes) if entry in dead]:
        graph.erase_node(entry)


def _computed_for(graph: fx.Graph, results: list[fx.Node], given: Collection[object]) -> set[fx.Node]:
    """What `results` are computed by from `given`, the vmap regions that it runs in included."""
    found: set[fx.Node] = set()
    stack = list(results)
    while stack:
        node = stack.pop()
        if node not in found and node not in given and node.op != "placeholder":
            found.add(node)
            stack.extend(node.all_input_nodes)
    for region in regions(graph):
        if found & set(region):
            found.update(region)
            if operator_name(region[0].prev) == "lazy_load_decompositions":
                found.add(region[0].prev)
    return found


def _writes(node: fx.Node) -> bool:
    return operator_name(node) == "setitem" or writes_in_place(node)
