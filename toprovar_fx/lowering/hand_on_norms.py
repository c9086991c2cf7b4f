"""Pairs the calls of equal blocks in a step, so that each computes the norm that begins the next one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from .carried_forms import norm_form
from .region import Region
from .region_calls import RegionCalls, arguments_at


def hand_on_norms(calls: RegionCalls) -> bool:
    """Rewrite calls of one block after another, with other weights, to its form of `with_carried_norm`.

    Returns:
        Whether anything was changed.
    """
    behind = calls.pairs(_needs)
    follow = set(behind.values())
    normed: dict[fx.Node, fx.Node] = {}
    for node, region in calls.regions.items():
        form = norm_form(region) if node in behind or node in follow else None
        if form is None:
            continue
        own, after = arguments_at(node, form.modulations), behind.get(node)
        with calls.graph.inserting_before(node):
            if node not in normed:
                normed[node] = calls.call(form.norm, node.args[0], *own)
            # Behind the last of a row nobody reads the norm.
            following = own if after is None else arguments_at(after, form.modulations)
            hidden, norm = calls.call_for_two(form.block, *node.args, normed[node], *following)
        if after is not None:
            normed[after] = norm
        node.replace_all_uses_with(hidden)
        calls.graph.erase_node(node)
    return bool(behind)


def _needs(region: Region, before: fx.Node, after: fx.Node) -> Sequence[int] | None:
    """What the first of two calls has to know to compute the norm that begins the second."""
    form = norm_form(region)
    return None if form is None else form.modulations
