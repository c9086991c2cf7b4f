"""Pairs the calls of pruned blocks that keep the same tokens, so that rows go from one to the next."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import fx

from .carried_forms import rows_form
from .hand_on_norms import calls_of, modulations_of
from .region import Region


class _Rows(NamedTuple):
    """The hidden state that rows will be written to, the rows, and the norm that begins the block."""

    hidden: Any
    rows: fx.Node
    normed: fx.Node


def hand_on_rows(
    graph: fx.Graph, region_of: Callable[[fx.Node], Region | None], name_of: Callable[[Region], str]
) -> bool:
    """Rewrite calls of one block that writes rows in place to the forms of `with_carried_rows`.

    Args:
        graph: changed in place.
        region_of: the region that a node calls, or None for other nodes.
        name_of: the name by which the graph's module calls a region.

    Returns:
        Whether anything was changed.
    """
    calls = calls_of(graph, region_of)
    behind = _pairs(graph, calls)
    # A block that runs between others by two of the forms does so alone as well: one compilation less.
    rewritten = {calls[before] for before in behind}
    known: dict[fx.Node, _Rows] = {}

    def call(region: Region, *arguments: Any) -> fx.Node:
        return graph.call_module(name_of(region), arguments)

    def both(region: Region, *arguments: Any) -> tuple[fx.Node, fx.Node]:
        results = call(region, *arguments)
        rows, normed = (graph.call_function(operator.getitem, (results, at)) for at in range(2))
        return rows, normed

    for node, region in calls.items():
        form = rows_form(region) if region in rewritten else None
        if form is None:
            continue
        after, (hidden, *others) = behind.get(node), node.args
        with graph.inserting_before(node):
            if node not in known:
                own = modulations_of(node, form.modulations)
                known[node] = _Rows(hidden, *both(form.first, hidden, node.args[form.keep], *own))
            hidden, rows, normed = known[node]
            given = hidden, *others, rows, normed
            if after is None:
                node.replace_all_uses_with(call(form.last, *given))
            else:
                made = both(form.middle, *given, *modulations_of(after, form.modulations))
                known[after] = _Rows(hidden, *made)
                after.update_arg(0, hidden)
        graph.erase_node(node)
    return bool(behind)


def _pairs(graph: fx.Graph, calls: dict[fx.Node, Region]) -> dict[fx.Node, fx.Node]:
    """The call behind a call, where rows can go from the first to the second and nobody sees them between."""
    place = {node: at for at, node in enumerate(graph.nodes)}
    found: dict[fx.Node, fx.Node] = {}
    for after, region in calls.items():
        before = after.args[0] if after.args else None
        if not isinstance(before, fx.Node) or calls.get(before) is not region:
            continue
        if len(before.users) != 1 or after.args.count(before) != 1:
            continue
        form = rows_form(region)
        if form is None or after.args[form.keep] is not before.args[form.keep]:
            continue
        if all(place[node] < place[before] for node in modulations_of(after, form.modulations)):
            found[before] = after
    return found
