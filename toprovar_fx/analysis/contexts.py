"""Regions in a graph: nodes that compute nothing and change what the nodes between them compute.

`with torch.autocast(..., enabled=False)` in a model becomes an enter and an exit node, and so does
`torch.vmap`, which FlexAttention's masks are made by. A block keeps those that lie inside it, so it computes
the same under a caller's own autocast.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx

from .caches import CACHE_HOLDER
from .operators import operator_name
from .reasons import Reason, Unsupported
from .shapes import size_of

_ENTER = frozenset({"_enter_autocast", "_vmap_increment_nesting"})
_EXIT = frozenset({"_exit_autocast", "_vmap_decrement_nesting"})


def is_context(node: fx.Node) -> bool:
    """Whether a node enters or leaves an autocast or a vmap region."""
    return node.op == "call_function" and operator_name(node) in _ENTER | _EXIT


def refuse_split_regions(graph: fx.Graph, blocks: Iterable[Collection[fx.Node]]) -> None:
    """Refuse a step with a region that is not whole inside one of its blocks.

    Outlining moves a block's nodes together, away from the enter and exit nodes of such a region.
    """
    owner = {node: at for at, nodes in enumerate(blocks) for node in nodes}
    open_regions: list[fx.Node] = []
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        if size_of(node) is not None or CACHE_HOLDER in node.meta:
            # A number, or memory for a cache: autocast changes neither.
            continue
        if is_context(node) and operator_name(node) in _ENTER:
            open_regions.append(node)
        for region in open_regions:
            if region not in owner or owner.get(node) != owner[region]:
                raise Unsupported(
                    Reason.NO_BLOCK, node, "an autocast or vmap region is not whole inside one block"
                )
        if is_context(node) and operator_name(node) in _EXIT:
            # Autocast names the region that it leaves, vmap leaves the innermost one.
            open_regions.remove(node.args[0] if node.args else open_regions[-1])  # type: ignore[arg-type]
