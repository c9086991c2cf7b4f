"""Where a block's cached keys and values lie, told so exactly that rows can be taken out head by head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .caches import CacheRead
from .facts import BlockFacts
from .operators import operator_name
from .reasons import Reason, Unsupported
from .shapes import same, shape_of

_CASTS = frozenset({"to", "float", "half", "bfloat16", "type", "type_as", "contiguous"})


@dataclass(frozen=True)
class CacheLayout:
    """The two caches of one block.

    Attributes:
        key, value: positions of the caches among the block's inputs.
        axis: dimension of the rows: 2 of [R, Hk, rows, E], 1 of [R, rows, Hk, E].
        scale: factor of the logits.
    """

    key: int
    value: int
    axis: int
    scale: float


def read_cache_layout(graph: fx.Graph, facts: BlockFacts) -> CacheLayout:
    """Understand the caches that the self-attention of a block reads.

    Raises:
        Unsupported: heads and rows of the cache cannot be told apart, or something pairs with the cached keys
            by position.
    """
    call = facts.attention
    assert call is not None
    if facts.position_of_keys is not None:
        raise Unsupported(
            Reason.MASKED_ATTENTION, facts.position_of_keys, "rows that leave the cache leave its columns"
        )
    if call.score_mod is not None:
        raise Unsupported(Reason.WHOLE_CACHE, call.node, "a score_mod changes the scores")
    if call.logits is not None or call.scale is None or len(shape_of(call.query)) != 4 or not facts.writes:
        raise Unsupported(Reason.WHOLE_CACHE, call.node, "no fused attention of rank 4 over a cache")
    key, value = (_source(operand, facts) for operand in (call.key, call.value))
    heads = 1 if call.heads_first else 2
    count, shared = shape_of(call.query)[heads], shape_of(call.key)[heads]
    if not same(count, shared) and not call.grouped:
        raise Unsupported(Reason.WHOLE_CACHE, call.node, "query heads share key heads in an unknown order")
    if key.axis != value.axis or key.cache is value.cache:
        raise Unsupported(Reason.WHOLE_CACHE, call.node, "keys and values are cached in different layouts")
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if key.cache not in inputs or value.cache not in inputs:
        raise Unsupported(Reason.WHOLE_CACHE, call.node, "a cache is made inside the block")
    return CacheLayout(inputs.index(key.cache), inputs.index(value.cache), key.axis, call.scale)


def _source(node: fx.Node, facts: BlockFacts) -> CacheRead:
    """The read of a cache that an operand of attention is, casts and swaps of heads and rows aside."""
    reads = {read.node: read for read in facts.reads}
    while node not in reads:
        if operator_name(node) not in _CASTS and not _swaps(node):
            raise Unsupported(Reason.WHOLE_CACHE, node, "cached rows are rearranged before attention")
        node = next(operand for operand in node.all_input_nodes if operand in facts.keyed)
    read = reads[node]
    if len(shape_of(node)) != 4 or read.axis not in (1, 2):
        raise Unsupported(
            Reason.WHOLE_CACHE, node, "a cache is not [R, heads, rows, E] or [R, rows, heads, E]"
        )
    return read


def _swaps(node: fx.Node) -> bool:
    """Whether a node exchanges the two middle dimensions of four, or none."""
    order = node.args[1] if len(node.args) == 2 else node.args[1:]
    if operator_name(node) in ("view", "reshape"):
        before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
        return len(before) == len(after) and all(map(same, before, after))
    if operator_name(node) == "transpose":
        return isinstance(order, tuple) and {at % 4 for at in order if isinstance(at, int)} == {1, 2}
    if operator_name(node) == "permute":
        return isinstance(order, (tuple, list)) and [*order] == [0, 2, 1, 3]
    return False
