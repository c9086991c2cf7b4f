"""Pass `outline_blocks`: every block of the step becomes a graph of its own, equal ones shared."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import fx

from .._torch_private import graph_to_read
from ..analysis.block_facts import read_block
from ..analysis.blocks import Block, read_step
from ..analysis.caches import refuse_shared
from ..analysis.in_place import refuse_aliased_writes, refuse_moved_writes
from ..analysis.reasons import Fallback, Unsupported
from ..analysis.signature import external_inputs
from ..analysis.sublayers import split_blocks
from ..declaration import declare
from ..lowering.known_sizes import fold_known_sizes
from ..lowering.outline import Outline, extract, replace_by_calls
from .canonical_caches import canonical_caches
from .part_rows import with_parted_rows
from .step import BlockGraph, Site, Step
from .trivial_block_masks import without_trivial_block_masks


@declare(
    rewrites="the captured graph: caches get one form, blocks become graphs of their own, equal ones shared",
    ensures="the same values in the same order; a block that is not understood keeps its reason",
    price="a padding for each joined cache instead of the joining; no fusion across block borders",
    when="always",
)
def outline_blocks(traced: fx.GraphModule, granularity: str = "layer") -> Step:
    """Outline the blocks of a traced scale step, or with granularity "sublayer" the sublayers of each.

    Requires: a graph from Dynamo (one hidden state [R, L, C] enters).
    Ensures: the step graph computes the same values in the same order; each block graph is read by the
        analysis, and one that is not understood keeps its reason.

    Raises:
        Unsupported: the step has no blocks that could be found.
    """
    traced = with_parted_rows(without_trivial_block_masks(fold_known_sizes(traced)))
    captured = canonical_caches(traced.graph)
    facts = read_step(captured)
    blocks, parts, fallback = facts.blocks, 1, None
    if granularity == "sublayer":
        try:
            blocks, parts = split_blocks(captured, blocks, facts.cuts, facts.dependent)
        except Unsupported as verdict:
            fallback = verdict.fallback
    return _outlined(traced, captured, blocks, _read, parts, fallback)


def outline_unread_blocks(traced: fx.GraphModule) -> Step:
    """Outline the blocks of a step in which nothing is pruned, so that equal ones are compiled once.

    Requires: a graph from Dynamo, of any number of tokens.
    Ensures: the step graph computes the same values in the same order; no block has facts.

    Raises:
        Unsupported: the step has no blocks that could be found.
    """
    blocks = read_step(traced.graph, one_token=True).blocks
    return _outlined(traced, traced.graph, blocks, lambda graph, attends: BlockGraph(graph, None))


def _outlined(
    traced: fx.GraphModule,
    captured: fx.Graph,
    blocks: tuple[Block, ...],
    read: Callable[[fx.GraphModule, bool], BlockGraph],
    parts: int = 1,
    fallback: Fallback | None = None,
) -> Step:
    known: dict[Hashable, BlockGraph] = {}
    outlines, sites, modules = [], [], {}
    for block in blocks:
        outline = Outline(_name(block.layer, parts), block.entry, block.nodes)
        if block.structure not in known:
            known[block.structure] = read(extract(outline), block.attention is not None)
        own = _unless_shared(known[block.structure], captured, block)
        if own.facts is None:
            refuse_aliased_writes(external_inputs(block.entry, block.nodes), block.nodes)
        outlines.append(outline)
        sites.append(Site(block.layer, outline.name, own))
        modules[outline.name] = own.graph
    for at, nodes in enumerate(_rest(captured, blocks)):
        outline = Outline(f"rest_{at}", _entry(nodes), tuple(nodes))
        refuse_aliased_writes(external_inputs(outline.entry, nodes), nodes)
        outlines.append(outline)
        modules[outline.name] = extract(outline)
    refuse_moved_writes(captured, [outline.nodes for outline in outlines])
    graph = replace_by_calls(captured, outlines)
    module = graph_to_read({**dict(traced.named_children()), **modules}, graph, "Step")
    return Step(module, tuple(sites), parts, fallback)


def _name(unit: int, parts: int) -> str:
    layer, part = divmod(unit, parts)
    return f"block_{layer}" if parts == 1 else f"block_{layer}_{part}"


def _read(graph: fx.GraphModule, attends: bool) -> BlockGraph:
    try:
        return BlockGraph(graph, read_block(graph.graph, attends))
    except Unsupported as verdict:
        return BlockGraph(graph, None, verdict.fallback)


def _unless_shared(known: BlockGraph, graph: fx.Graph, block: Block) -> BlockGraph:
    """The block graph, or one without facts where another part of the step uses this layer's cache."""
    try:
        refuse_shared(graph, set(block.nodes))
    except Unsupported as verdict:
        return BlockGraph(known.graph, None, verdict.fallback)
    return known


def _rest(graph: fx.Graph, blocks: tuple[Block, ...]) -> list[list[fx.Node]]:
    """Runs of nodes outside the blocks that depend on the hidden states, such as the head."""
    inside = {node: block.layer for block in blocks for node in block.nodes}
    dependent = {block.exit for block in blocks}
    runs: list[list[fx.Node]] = []
    previous, behind = -1, -2  # the block before a node, and the one before the latest run
    for node in graph.nodes:
        if node in inside:
            previous = inside[node]
            continue
        if node.op in ("placeholder", "output") or not any(
            operand in dependent for operand in node.all_input_nodes
        ):
            continue
        dependent.add(node)
        if behind != previous:
            runs.append([])
            behind = previous
        runs[-1].append(node)
    return runs


def _entry(nodes: list[fx.Node]) -> fx.Node:
    members = set(nodes)
    return next(operand for operand in nodes[0].all_input_nodes if operand not in members)
