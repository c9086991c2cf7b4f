"""Pairs the calls of equal blocks in a step, so that each computes the norm that begins the next one."""

from __future__ import annotations

from torch import fx

from .carried_forms import norm_form
from .region_calls import RegionCalls, arguments_at


def hand_on_norms(calls: RegionCalls) -> bool:
    """Rewrite calls of one block after another, with other weights, to its form of `with_carried_norm`.

    Returns:
        Whether anything was changed.
    """
    behind = _pairs(calls)
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


def _pairs(calls: RegionCalls) -> dict[fx.Node, fx.Node]:
    """The call behind a call, where the first can compute the norm that begins the second."""
    found: dict[fx.Node, fx.Node] = {}
    for after, region in calls.regions.items():
        before = calls.before(after)
        if before is None or before in found:
            continue
        form = norm_form(region)
        if form is not None and calls.known(arguments_at(after, form.modulations), before):
            found[before] = after
    return found
