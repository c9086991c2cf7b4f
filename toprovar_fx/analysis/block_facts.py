"""What a single block graph does with its tokens: axes of every value, tables, cache writes and reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import sympy
import torch
from torch import fx

from .attention import AttentionCall, attention_calls, refused
from .caches import CacheRead, CacheWrite, read_read, read_write, written_caches
from .contractions import read_contraction
from .facts import BlockFacts
from .flex import ScoreMod
from .in_place import refuse_writes
from .operators import (
    flat_arguments,
    operator_name,
    refuse_foreign,
    states_length,
    value_operands,
    writes_in_place,
)
from .random_numbers import refuse_random
from .reasons import Fallback, Reason, Unsupported
from .rules import transfer
from .scores import ScoreReader
from .shapes import Size, as_size, dtype_of, same, shape_of, size_of, value_of
from .transfers import Axes, Transfer
from .writes import memory_of

__all__ = ["BlockFacts", "read_block"]


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
    variant = refused(graph)
    if variant is not None:
        raise variant
    calls = attention_calls(graph)
    facts = BlockFacts(length, hidden, leave, None, axes={hidden: Axes(0, 1)})
    caches = written_caches(graph)
    own: list[AttentionCall] = []
    by_node = {call.entry: call for call in calls if call.logits is None}
    scores = ScoreReader(facts)
    write_of: dict[fx.Node, CacheWrite] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        refuse_random(node)
        tokens = [operand for operand in value_operands(node) if operand in facts.axes]
        keyed = [operand for operand in value_operands(node) if operand in facts.keyed]
        if (tokens or keyed) and node not in by_node:
            refuse_foreign(node)
        product = read_contraction(node) if tokens or keyed else None
        if node in by_node:
            _attention(by_node[node], facts, own)
        elif operator_name(node) == "setitem" and node.args[0] in caches:
            _write(node, facts, write_of)
        elif any(operand in write_of for operand in node.all_input_nodes):
            cache = next(operand for operand in node.all_input_nodes if operand in write_of)
            _read(read_read(node, write_of[cache]), write_of[cache], facts)
        elif any(operand in caches for operand in node.all_input_nodes):
            raise Unsupported(Reason.CACHE_LAYOUT, node, "the cache is used before this scale is written")
        elif product is not None:
            attention = scores.product(node, product)
            own.extend([] if attention is None else [attention])
        elif scores.touches(node):
            _refuse_length(node, length, _rows_of(keyed[0], facts))
            scores.operator(node)
        elif tokens:
            _row_operator(node, facts)
        elif keyed:
            _key_operator(node, keyed[0], facts)
    if len(own) != attends:
        where = calls[0].node if calls else leave
        raise Unsupported(Reason.NO_ATTENTION, where, f"{len(own)} self-attentions in one block")
    facts.attention = own[0] if own else None
    _refuse_whole(facts)
    return facts


def _refuse_whole(facts: BlockFacts) -> None:
    """Refuse a block whose nodes are all understood, for what they make together."""
    call, hidden, leave = facts.attention, facts.hidden, facts.exit
    if call is not None and hidden in (call.key, call.value):
        raise Unsupported(Reason.TOKEN_MIXING, call.node, "keys or values are the hidden state itself")
    starts = [size_of(write.start) for write in facts.writes]
    # Two caches, of keys and of values, begin alike or attention would not take them.
    if len(starts) > 2 and not all(same(start, starts[0]) for start in starts[1:]):
        raise Unsupported(Reason.CACHE_LAYOUT, facts.writes[-1].node, "caches of one block begin apart")
    read = {each.cache for each in facts.reads}
    unread = next((write.node for write in facts.writes if write.cache not in read), None)
    if unread is not None:
        raise Unsupported(Reason.CACHE_LAYOUT, unread, "its rows are for another reader than this attention")
    refuse_writes(facts)
    if facts.axes.get(leave) != Axes(0, 1):
        raise Unsupported(Reason.RESHAPED_TOKENS, leave, "the block's result is not [rows, tokens, width]")
    if dtype_of(leave) != dtype_of(hidden):
        raise Unsupported(Reason.RESIDUAL_DTYPE, leave, f"{dtype_of(hidden)} becomes {dtype_of(leave)}")


def _write(node: fx.Node, facts: BlockFacts, write_of: dict[fx.Node, CacheWrite]) -> None:
    """The scale's rows into a cache; `write_of` is by cache."""
    rows = node.args[2]
    if not isinstance(rows, fx.Node) or rows not in facts.axes:
        raise Unsupported(Reason.CACHE_WRITE, node, "the written rows are not the scale's tokens")
    write = read_write(node, facts.axes[rows], facts.length)
    if write.cache in write_of:
        raise Unsupported(Reason.CACHE_WRITE, node, "the cache is written twice")
    write_of[write.cache] = write
    facts.writes.append(write)


def _read(read: CacheRead, write: CacheWrite, facts: BlockFacts) -> None:
    """All rows of a cache: one per key, batch rows where the written rows have them."""
    facts.reads.append(read)
    facts.keyed[read.node] = replace(facts.axes[write.rows], token=read.axis)


def _attention(call: AttentionCall, facts: BlockFacts, own: list[AttentionCall]) -> None:
    """Self-attention over the cache or over the scale's tokens, or cross-attention to something untagged."""
    axes = facts.axes.get(call.query)
    if not any(operand in facts.axes or operand in facts.keyed for operand in call.entry.all_input_nodes):
        return
    if axes is None:
        raise Unsupported(Reason.TOKEN_MIXING, call.node, "the queries carry no tokens")
    if call.verdict is not None:
        raise _again(call.verdict)
    if (axes.batch, axes.token) != (0, call.query_axis):
        raise Unsupported(Reason.TOKEN_MIXING, call.node, "query layout")
    over_tokens = [facts.axes.get(operand) or facts.keyed.get(operand) for operand in (call.key, call.value)]
    from_cache = {operand in facts.keyed for operand in (call.key, call.value)}
    tables: tuple[tuple[fx.Node, int], ...] = ()
    if all(found is not None for found in over_tokens):
        if any(found != axes for found in over_tokens):
            raise Unsupported(Reason.TOKEN_MIXING, call.node, "key layout")
        if len(from_cache) != 1:
            raise Unsupported(Reason.TOKEN_MIXING, call.node, "keys and values have different sources")
        own.append(call)
    elif any(found is not None for found in over_tokens):
        raise Unsupported(Reason.TOKEN_MIXING, call.node, "keys and values have different sources")
    frame, rank = call.frame
    if call.mask is not None:
        sizes = shape_of(call.mask)
        if call.mask in facts.axes or call.mask in facts.keyed:
            raise Unsupported(Reason.MASKED_ATTENTION, call.node, "the mask is computed from tokens")
        if len(sizes) >= 2 and sizes[-2] != 1:
            tables = ((call.mask, len(sizes) - 2),)
        if call in own and sizes[-1] != 1:
            facts.add_key_tables(call.entry, ((call.mask, len(sizes) - 1),))
    if call.score_mod is not None:
        _score_mod(call, call.score_mod, facts, call in own)
    rows = (call.query,)
    facts.note(call.entry, Transfer(axes, tables, (replace(frame, spread=axes.spread), rank)), rows)


def _score_mod(call: AttentionCall, mod: ScoreMod, facts: BlockFacts, own: bool) -> None:
    """What FlexAttention does to its scores: values, and positions that must stay what they were."""
    facts.score_mods[call.entry] = mod
    if own and mod.by_key:
        facts.key_tables[call.entry] = ()
    counts = [facts.length, shape_of(call.key)[call.query_axis]]
    counted = set().union(*(count.free_symbols for count in counts))
    for buffer in mod.buffers:
        if buffer in facts.axes or buffer in facts.keyed:
            raise Unsupported(Reason.MASKED_ATTENTION, call.node, "its score_mod captures values of tokens")
        size = size_of(buffer)
        if size is None or ((mod.by_query or mod.by_key) and _is_place(size, facts, counted)):
            continue
        if size.free_symbols & counted:
            raise Unsupported(Reason.LENGTH_IN_ARITHMETIC, call.node, f"its score_mod captures {size}")


def _is_place(size: Size, facts: BlockFacts, counted: Collection[sympy.Basic]) -> bool:
    """Whether a size is where the scale begins or ends: it says where tokens are, not how many are left."""
    starts = [size_of(write.start) for write in facts.writes]
    if starts:
        return any(same(size, place) for start in starts for place in (start, start + facts.length))
    # Without a cache nothing tells where the scale begins, but it ends L further on, whatever L is.
    return not (size + facts.length).free_symbols & set(counted)


def _again(verdict: Fallback) -> Unsupported:
    """A verdict of the search for attentions, raised where the block is read."""
    refusal = Unsupported(verdict.reason)
    refusal.fallback = verdict
    return refusal


def _row_operator(node: fx.Node, facts: BlockFacts) -> None:
    if writes_in_place(node) and (node.args[0] not in facts.axes or memory_of(node).op == "placeholder"):
        raise Unsupported(Reason.IN_PLACE_WRITE, node)
    result = transfer(node, facts.axes, facts.length)
    if any(operand in facts.keyed for operand in value_operands(node)):
        raise Unsupported(Reason.TOKEN_MIXING, node, "a cached value is used outside attention")
    _refuse_length(node, facts.length)
    facts.note(node, result)


def _key_operator(node: fx.Node, operand: fx.Node, facts: BlockFacts) -> None:
    """An operator on cached rows alone, such as a cast, a layout or heads repeated for grouped queries."""
    if writes_in_place(node):
        raise Unsupported(Reason.CACHE_WRITE, node, "a value read from the cache is written in place")
    count = _rows_of(operand, facts)
    result = transfer(node, facts.keyed, count)
    _refuse_length(node, count)
    facts.keyed[node] = result.axes
    facts.add_key_tables(node, result.tables)


def _rows_of(operand: fx.Node, facts: BlockFacts) -> Size:
    """Number of keys, by a value with one row per key, or by one of a bundle."""
    value = value_of(operand)
    one = value[0] if isinstance(value, (tuple, list)) else value
    if not isinstance(one, torch.Tensor):
        raise Unsupported(Reason.UNKNOWN_OPERATOR, operand, "the trace recorded no shape")
    return as_size(one.shape[facts.keyed[operand].token])


def _refuse_length(node: fx.Node, *counts: Size) -> None:
    """Refuse a node that computes with the number of tokens or keys; to state it as a size is none."""
    if any(states_length(node, count) for count in counts):
        if any(isinstance(value, (tuple, list, fx.Node)) for value in node.kwargs.values()):
            raise Unsupported(Reason.RESHAPED_TOKENS, node, "sizes given by keyword")
        return
    symbols = set().union(*(count.free_symbols for count in counts))
    for entry in flat_arguments(node):
        size = None if isinstance(entry, int) else size_of(entry)
        if size is not None and symbols & size.free_symbols:
            raise Unsupported(Reason.LENGTH_IN_ARITHMETIC, node, str(size))
