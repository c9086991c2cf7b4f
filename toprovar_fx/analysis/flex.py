"""FlexAttention: what a call does to its scores, read off the graphs that it is given.

Dynamo leaves one node, whose `score_mod` is a graph of one score and of its four indices. Whatever that graph
computes, it treats each score alone: rows may be dropped, as long as positions in it stay what they were.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .._torch_private import flex_attention
from .operators import fetched_graph, operator_name
from .random_numbers import refuse_random
from .reasons import Reason, Unsupported

PARAMETERS = (
    *("query", "key", "value", "score_mod", "block_mask", "scale", "kernel_options"),
    *("score_mod_other_buffers", "mask_mod_other_buffers"),
)
# The side of the one block of a mask that torch makes where none is given.
_WHOLE = 1 << 30
_ALL = frozenset({"new_ones", "ones", "ones_like"})


@dataclass(frozen=True)
class ScoreMod:
    """A change of every score alone, `score_mod(score, b, h, q_idx, kv_idx, *buffers)`.

    Attributes:
        graph: computes it, from scalars and the buffers.
        buffers: tensors and sizes that it captures and reads.
        by_query, by_key: whether it looks at the position of the query, of the key.
    """

    graph: fx.GraphModule
    buffers: tuple[object, ...]
    by_query: bool
    by_key: bool


def is_flex(node: fx.Node) -> bool:
    """Whether a node is the operator that Dynamo makes of `flex_attention`."""
    return node.op == "call_function" and node.target is flex_attention


def given_to_flex(node: fx.Node) -> dict[str, object]:
    """All arguments of a FlexAttention node by name, in the order of its parameters."""
    given = {**dict(zip(PARAMETERS, node.args, strict=False)), **node.kwargs}
    # The captured buffers alone may be left out.
    return {name: given.get(name, ()) for name in PARAMETERS}


def read_score_mod(node: fx.Node) -> ScoreMod | None:
    """What a FlexAttention node does to its scores; None where it leaves them alone.

    Raises:
        Unsupported: it masks, or draws random numbers.
    """
    if not is_flex(node):
        # The function itself: it compiles what it is given on its own.
        raise Unsupported(Reason.ATTENTION_VARIANT, node, "FlexAttention that was not traced")
    given = given_to_flex(node)
    if not masks_nothing(given["block_mask"]):
        raise Unsupported(Reason.MASKED_ATTENTION, node, "a block mask; leave it out where it masks nothing")
    mod = fetched_graph(given["score_mod"])
    if mod is None:
        raise Unsupported(Reason.ATTENTION_VARIANT, node, "its score_mod is not at hand")
    score, _, _, query, key, *holders = (inner for inner in mod.graph.nodes if inner.op == "placeholder")
    if mod.graph.output_node().args[0] is score:
        return None
    for inner in mod.graph.nodes:
        refuse_random(inner)
    buffers = given["score_mod_other_buffers"]
    assert isinstance(buffers, (tuple, list))
    # Dynamo also hands over every size symbol in the buffers' shapes, which nothing reads.
    read = tuple(buffer for holder, buffer in zip(holders, buffers, strict=True) if holder.users)
    return ScoreMod(mod, read, bool(query.users), bool(key.users))


def masks_nothing(block_mask: object) -> bool:
    """Whether a block mask, as the operator takes it, is the one that stands for none.

    It is one block as wide as any sequence, which every row attends to, and all of it. A mask that happens to
    let everything through is another: its blocks are counted for as many rows as there were.
    """
    if not isinstance(block_mask, (tuple, list)) or len(block_mask) < 13:
        return False
    count, which, full_count, full_which = block_mask[2:6]
    return (
        tuple(block_mask[-3:-1]) == (_WHOLE, _WHOLE)
        and full_count is full_which is None
        and _is_filled(count, "ones", [1, 1, 1])
        and _is_filled(which, "zeros", [1, 1, 1, 1])
        and _lets_all_through(fetched_graph(block_mask[-1]))
    )


def _is_filled(node: object, name: str, shape: list[int]) -> bool:
    if not isinstance(node, fx.Node) or operator_name(node) != name or not node.args:
        return False
    return isinstance(node.args[0], (tuple, list)) and list(node.args[0]) == shape


def _lets_all_through(mask: fx.GraphModule | None) -> bool:
    result = None if mask is None else mask.graph.output_node().args[0]
    return isinstance(result, fx.Node) and result.op != "placeholder" and operator_name(result) in _ALL
