"""Regions in a graph: nodes that compute nothing and change what the nodes between them compute.

`with torch.autocast(..., enabled=False)` in a model becomes an enter and an exit node, and so does
`torch.vmap`, which FlexAttention's masks are made by. A block keeps those that lie inside it, so it computes
the same under a caller's own autocast.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

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


def regions(graph: fx.Graph) -> list[list[fx.Node]]:
    """The nodes of every region, its enter and exit node included."""
    found: list[list[fx.Node]] = []
    running: list[list[fx.Node]] = []
    for node in graph.nodes:
        if is_context(node) and operator_name(node) in _ENTER:
            running.append([])
            found.append(running[-1])
        for region in running:
            region.append(node)
        if is_context(node) and operator_name(node) in _EXIT:
            left = _left(node, [region[0] for region in running])
            running = [region for region in running if region[0] is not left]
    return found


def _left(node: fx.Node, running: Sequence[fx.Node]) -> fx.Node:
    """The enter node of the region that `node` leaves: autocast names it, vmap leaves the innermost one."""
    return node.args[0] if node.args else running[-1]  # type: ignore[return-value]


def refuse_split_regions(
    graph: fx.Graph, blocks: Iterable[Collection[fx.Node]], apart: Collection[fx.Node] = ()
) -> None:
    """Refuse a step with a region that is not whole inside one of its blocks.

    Outlining moves a block's nodes together, away from the enter and exit nodes of such a region. A region
    whose nodes are among `apart` may lie outside all blocks: none of its nodes depends on the tokens.
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
            outside = region not in owner and region not in apart
            if outside or owner.get(node) != owner.get(region):
                raise Unsupported(
                    Reason.NO_BLOCK, node, "an autocast or vmap region is not whole inside one block"
                )
        if is_context(node) and operator_name(node) in _EXIT:
            open_regions.remove(_left(node, open_regions))
