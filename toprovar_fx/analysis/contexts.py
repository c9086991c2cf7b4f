"""Autocast regions in a graph: nodes that compute nothing and change what the nodes between them compute.

`with torch.autocast(..., enabled=False)` in a model becomes an enter and an exit node. A block keeps those
that lie inside it, so it computes the same under a caller's own autocast.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx

from .operators import operator_name
from .reasons import Reason, Unsupported

_ENTER, _EXIT = "_enter_autocast", "_exit_autocast"


def is_context(node: fx.Node) -> bool:
    """Whether a node enters or leaves an autocast region."""
    return node.op == "call_function" and operator_name(node) in (_ENTER, _EXIT)


def regions(graph: fx.Graph) -> list[list[fx.Node]]:
    """The nodes of every autocast region, its enter and exit node included."""
    found: list[list[fx.Node]] = []
    running: list[list[fx.Node]] = []
    for node in graph.nodes:
        if is_context(node) and operator_name(node) == _ENTER:
            running.append([])
            found.append(running[-1])
        for region in running:
            region.append(node)
        if is_context(node) and operator_name(node) == _EXIT:
            running = [region for region in running if region[0] is not node.args[0]]
    return found


def refuse_split_regions(
    graph: fx.Graph, blocks: Iterable[Collection[fx.Node]], apart: Collection[fx.Node] = ()
) -> None:
    """Refuse a step with an autocast region that is not whole inside one of its blocks.

    Outlining moves a block's nodes together, away from the enter and exit nodes of such a region. A region
    whose nodes are among `apart` may lie outside all blocks: none of its nodes depends on the tokens.
    """
    owner = {node: at for at, nodes in enumerate(blocks) for node in nodes}
    open_regions: list[fx.Node] = []
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        if is_context(node) and operator_name(node) == _ENTER:
            open_regions.append(node)
        for region in open_regions:
            outside = region not in owner and region not in apart
            if outside or owner.get(node) != owner.get(region):
                raise Unsupported(Reason.NO_BLOCK, node, "an autocast region is not whole inside one block")
        if is_context(node) and operator_name(node) == _EXIT:
            open_regions.remove(node.args[0])  # type: ignore[arg-type]
