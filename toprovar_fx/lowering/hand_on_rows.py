"""Pairs the calls of pruned blocks that keep the same tokens, so that rows go from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import fx

from .carried_forms import rows_form
from .region import Region
from .region_calls import RegionCalls, arguments_at


class _Rows(NamedTuple):
    """The hidden state that rows will be written to, the rows, and the norm that begins the block."""

    hidden: Any
    rows: fx.Node
    normed: fx.Node


def hand_on_rows(calls: RegionCalls) -> bool:
    """Rewrite calls of one block that writes rows in place to the forms of `with_carried_rows`.

    Returns:
        Whether anything was changed.
    """
    behind = calls.pairs(_needs)
    # A block that runs between others by two of the forms does so alone as well: one compilation less.
    rewritten = {calls.regions[before] for before in behind}
    known: dict[fx.Node, _Rows] = {}
    for node, region in calls.regions.items():
        form = rows_form(region) if region in rewritten else None
        if form is None:
            continue
        after, (hidden, *others) = behind.get(node), node.args
        with calls.graph.inserting_before(node):
            if node not in known:
                own = arguments_at(node, form.modulations)
                begun = calls.call_for_two(form.first, hidden, node.args[form.keep], *own)
                known[node] = _Rows(hidden, *begun)
            hidden, rows, normed = known[node]
            given = hidden, *others, rows, normed
            if after is None:
                node.replace_all_uses_with(calls.call(form.last, *given))
            else:
                following = arguments_at(after, form.modulations)
                known[after] = _Rows(hidden, *calls.call_for_two(form.middle, *given, *following))
                after.update_arg(0, hidden)
        calls.graph.erase_node(node)
    return bool(behind)


def _needs(region: Region, before: fx.Node, after: fx.Node) -> Sequence[int] | None:
    """What the first of two calls has to know to hand on its rows, if nobody sees them between."""
    form = rows_form(region)
    if form is None or len(before.users) != 1 or after.args.count(before) != 1:
        return None
    return form.modulations if after.args[form.keep] is before.args[form.keep] else None
