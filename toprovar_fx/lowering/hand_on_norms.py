"""Pairs the calls of equal blocks in a step, so that each computes the norm that begins the next one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from torch import fx

from .carried_forms import norm_form
from .region import Region


def hand_on_norms(
    graph: fx.Graph, region_of: Callable[[fx.Node], Region | None], name_of: Callable[[Region], str]
) -> bool:
    """Rewrite calls of one block after another, with other weights, to its form of `with_carried_norm`.

    Args:
        graph: changed in place.
        region_of: the region that a node calls, or None for other nodes.
        name_of: the name by which the graph's module calls a region.

    Returns:
        Whether anything was changed.
    """
    calls = calls_of(graph, region_of)
    behind = _pairs(graph, calls)
    follow = set(behind.values())
    normed: dict[fx.Node, fx.Node] = {}
    for node, region in calls.items():
        carried = norm_form(region) if node in behind or node in follow else None
        if carried is None:
            continue
        own, after = modulations_of(node, carried.modulations), behind.get(node)
        with graph.inserting_before(node):
            if node not in normed:
                normed[node] = graph.call_module(name_of(carried.norm), (node.args[0], *own))
            # Behind the last of a row nobody reads the norm.
            following = own if after is None else modulations_of(after, carried.modulations)
            given = *node.args, normed[node], *following
            both = graph.call_module(name_of(carried.block), given)
            hidden, norm = (graph.call_function(operator.getitem, (both, at)) for at in range(2))
        if after is not None:
            normed[after] = norm
        node.replace_all_uses_with(hidden)
        graph.erase_node(node)
    return bool(behind)


def _pairs(graph: fx.Graph, calls: dict[fx.Node, Region]) -> dict[fx.Node, fx.Node]:
    """The call behind a call, where the first can compute the norm that begins the second."""
    place = {node: at for at, node in enumerate(graph.nodes)}
    found: dict[fx.Node, fx.Node] = {}
    for after, region in calls.items():
        before = after.args[0] if after.args else None
        if not isinstance(before, fx.Node) or calls.get(before) is not region or before in found:
            continue
        carried = norm_form(region)
        if carried is not None and all(
            place[node] < place[before] for node in modulations_of(after, carried.modulations)
        ):
            found[before] = after
    return found


def calls_of(graph: fx.Graph, region_of: Callable[[fx.Node], Region | None]) -> dict[fx.Node, Region]:
    """The nodes that call regions, in order."""
    return {node: region for node in graph.nodes if (region := region_of(node)) is not None}


def modulations_of(call: fx.Node, positions: Sequence[int]) -> list[fx.Node]:
    """The arguments of a call at these positions."""
    return [call.args[position] for position in positions]  # type: ignore[misc]
