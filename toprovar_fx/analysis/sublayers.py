"""Cuts blocks into their sublayers, the branches between two residual sums that leave nothing else alive."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import fx

from .blocks import Block
from .contexts import is_context, refuse_split_regions, regions
from .operators import operator_name
from .reasons import Reason, Unsupported
from .residual import SUMS
from .shapes import dtype_of, value_of


def split_blocks(
    graph: fx.Graph, blocks: Sequence[Block], cuts: Sequence[fx.Node], dependent: Collection[fx.Node]
) -> tuple[tuple[Block, ...], int]:
    """Cut every block after each of its residual sums.

    Args:
        graph: of the scale step.
        blocks: its blocks.
        cuts: hidden states that alone are alive where they are computed.
        dependent: nodes that depend on the tokens.

    Returns:
        The sublayers in order, numbered through, and how many there are of each block.

    Raises:
        Unsupported: the blocks do not all have the same number of sublayers, two at least, or what several
            of them share cannot be moved out.
    """
    order = {node: at for at, node in enumerate(graph.nodes)}
    split = [_ends(block, cuts) for block in blocks]
    parts = len(split[0])
    if parts < 2 or any(len(ends) != parts for ends in split):
        counts = [len(ends) for ends in split]
        raise Unsupported(Reason.NO_SUBLAYERS, blocks[0].exit, f"sublayers of each block: {counts}")
    # Several sublayers may use what an autocast region without tokens computes: it stays outside them.
    free = [region for region in regions(graph) if not any(node in dependent for node in region)]
    apart = {node for region in free for node in region}
    found: list[Block] = []
    for block, ends in zip(blocks, split, strict=True):
        entry = block.entry
        for leave in ends:
            nodes = _between(block, entry, leave, dependent, apart, order)
            call = block.attention if block.attention is not None and block.attention.node in nodes else None
            found.append(Block(len(found), entry, leave, nodes, call))
            entry = leave
    try:
        refuse_split_regions(graph, [block.nodes for block in found], apart)
    except Unsupported as verdict:
        raise Unsupported(Reason.NO_SUBLAYERS, blocks[0].exit, verdict.fallback.detail) from None
    return tuple(found), parts


def _ends(block: Block, cuts: Sequence[fx.Node]) -> list[fx.Node]:
    """Residual sums of a block that leave nothing else alive, its exit last."""
    members = set(block.nodes)
    inner = [cut for cut in cuts if cut in members and cut is not block.exit and _adds_to(cut, block.entry)]
    return [*inner, block.exit]


def _adds_to(node: fx.Node, entry: fx.Node) -> bool:
    """Whether a value is `entry` plus updates, in its precision and with no norm in between."""
    if node is entry:
        return True
    is_sum = operator_name(node) in SUMS and dtype_of(node) == dtype_of(entry)
    return is_sum and any(_adds_to(operand, entry) for operand in node.all_input_nodes)


def _between(
    block: Block,
    entry: fx.Node,
    leave: fx.Node,
    dependent: Collection[fx.Node],
    apart: Collection[fx.Node],
    order: Mapping[fx.Node, int],
) -> tuple[fx.Node, ...]:
    """Nodes of a block between two of its sums: those of tokens, and what they alone use."""
    first = -1 if entry.op == "placeholder" else order[entry]
    inside = [node for node in block.nodes if first < order[node] <= order[leave] and node not in apart]
    members = {node for node in inside if node in dependent or is_context(node)}
    for node in reversed(inside):
        if node.users and all(user in members for user in node.users):
            members.add(node)
    # An input of a graph is a tensor or a size: the entries of a tuple from outside are taken outside.
    for node in inside:
        outside = [operand for operand in node.all_input_nodes if operand not in members]
        if node not in dependent and any(isinstance(value_of(operand), (tuple, list)) for operand in outside):
            members.discard(node)
    return tuple(node for node in inside if node in members)
