"""What a single block graph does with its tokens: axes of every value, tables, cache writes and reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from .attention import AttentionCall, attention_calls
from .caches import CacheRead, CacheWrite, read_read, read_write, written_caches
from .operators import flat_arguments, operator_name, states_length, writes_in_place
from .reasons import Reason, Unsupported
from .rules import transfer
from .shapes import Size, same, shape_of, size_of
from .transfers import Axes, Transfer


@dataclass
class BlockFacts:
    """Facts about a block graph whose first placeholder is the hidden state [R, L, C].

    Attributes:
        length: the token count L.
        axes: batch and token axis of every value with one row per token.
        transfers: for every such node, what its operator does with the rows.
        attention: the self-attention; None in a sublayer without one.
        writes, reads: cache accesses.
        hidden, exit: the entering and the leaving hidden state.
    """

    length: Size
    hidden: fx.Node
    exit: fx.Node
    attention: AttentionCall | None
    axes: dict[fx.Node, Axes] = field(default_factory=dict)
    transfers: dict[fx.Node, Transfer] = field(default_factory=dict)
    writes: list[CacheWrite] = field(default_factory=list)
    reads: list[CacheRead] = field(default_factory=list)


def read_block(graph: fx.Graph, attends: bool = True) -> BlockFacts:
    """Understand a block completely, or refuse it.

    Args:
        graph: of the block.
        attends: whether it has a self-attention; a block has, not every sublayer.

    Raises:
        Unsupported: at the first node whose effect on single tokens is not certain.
    """
    hidden = next(node for node in graph.nodes if node.op == "placeholder")
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    leave = output.all_input_nodes[0]
    length = shape_of(hidden)[1]
    calls = attention_calls(graph)
    facts = BlockFacts(length, hidden, leave, None, axes={hidden: Axes(0, 1)})
    caches = written_caches(graph)
    own: list[AttentionCall] = []
    by_node = {call.node: call for call in calls}
    read_of: dict[fx.Node, CacheRead] = {}
    write_of: dict[fx.Node, CacheWrite] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        tokens = [operand for operand in node.all_input_nodes if operand in facts.axes]
        if node in by_node:
            _attention(by_node[node], facts, read_of, own)
        elif operator_name(node) == "setitem" and node.args[0] in caches:
            if not isinstance(node.args[2], fx.Node) or node.args[2] not in facts.axes:
                raise Unsupported(Reason.CACHE_WRITE, node, "the written rows are not the scale's tokens")
            write = read_write(node, facts.axes[node.args[2]], length)
            if write.cache in write_of:
                raise Unsupported(Reason.CACHE_WRITE, node, "the cache is written twice")
            write_of[write.cache] = write
            facts.writes.append(write)
        elif any(operand in write_of for operand in node.all_input_nodes):
            cache = next(operand for operand in node.all_input_nodes if operand in write_of)
            read_of[node] = read_read(node, write_of[cache])
            facts.reads.append(read_of[node])
        elif tokens:
            _row_operator(node, facts)
        elif any(operand in read_of for operand in node.all_input_nodes):
            raise Unsupported(Reason.TOKEN_MIXING, node, "a cached value is used outside attention")
    if len(own) != attends:
        where = calls[0].node if calls else leave
        raise Unsupported(Reason.NO_ATTENTION, where, f"{len(own)} self-attentions in one block")
    facts.attention = own[0] if own else None
    if facts.axes.get(leave) != Axes(0, 1):
        raise Unsupported(Reason.RESHAPED_TOKENS, leave, "the block's result is not [rows, tokens, width]")
    return facts


def _attention(
    call: AttentionCall, facts: BlockFacts, read_of: dict[fx.Node, CacheRead], own: list[AttentionCall]
) -> None:
    """Self-attention over the cache or over the scale's tokens, or cross-attention to something untagged."""
    axes = facts.axes.get(call.query)
    rank = len(shape_of(call.query))
    if axes is None:
        raise Unsupported(Reason.TOKEN_MIXING, call.node, "the queries carry no tokens")
    if axes.token != rank - 2 or call.causal:
        raise Unsupported(Reason.MASKED_ATTENTION, call.node, "causal" if call.causal else "query layout")
    over_tokens = [operand in facts.axes or operand in read_of for operand in (call.key, call.value)]
    if all(over_tokens):
        for operand in (call.key, call.value):
            if operand in facts.axes and facts.axes[operand].token != rank - 2:
                raise Unsupported(Reason.TOKEN_MIXING, call.node, "key layout")
        if call.mask is not None:
            raise Unsupported(Reason.MASKED_ATTENTION, call.node, "a mask over the scale's own tokens")
        own.append(call)
    elif any(over_tokens):
        raise Unsupported(Reason.TOKEN_MIXING, call.node, "keys and values have different sources")
    tables: tuple[tuple[fx.Node, int], ...] = ()
    if call.mask is not None:
        rows = shape_of(call.mask)
        if len(rows) >= 2 and same(rows[-2], facts.length):
            tables = ((call.mask, len(rows) - 2),)
    facts.axes[call.node] = axes
    facts.transfers[call.node] = Transfer(axes, tables)


def _row_operator(node: fx.Node, facts: BlockFacts) -> None:
    if writes_in_place(node) and _root(node) in (facts.hidden,):
        raise Unsupported(Reason.IN_PLACE_WRITE, node)
    result = transfer(node, facts.axes, facts.length)
    if not states_length(node, facts.length):
        for entry in flat_arguments(node):
            size = None if isinstance(entry, int) else size_of(entry)
            if size is not None and facts.length.free_symbols & size.free_symbols:
                raise Unsupported(Reason.LENGTH_IN_ARITHMETIC, node, str(size))
    facts.axes[node] = result.axes
    facts.transfers[node] = result


def _root(node: fx.Node) -> fx.Node:
    """The value whose memory an in-place operator's first operand shares, views followed upwards."""
    views = {
        "view",
        "reshape",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "getitem",
        "expand",
        "unbind",
        "chunk",
    }
    at = node.args[0]
    while isinstance(at, fx.Node) and at.op != "placeholder":
        if operator_name(at) not in views and not writes_in_place(at):
            return at
        at = at.args[0]
    assert isinstance(at, fx.Node)
    return at
