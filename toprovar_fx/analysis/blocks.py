"""Finds the transformer's blocks in the graph of a scale step, by structure alone.

A *cut* is a place in execution order where exactly one value that depends on the tokens is alive: the
residual stream. A block runs from the last cut before one self-attention to the last cut before the next one.
The last block ends where its structure equals that of the block before it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy
import torch
from torch import fx

from .attention import AttentionCall, attention_calls, refused
from .batch_rows import before_mixed_rows
from .caches import CACHE_HOLDER
from .contexts import is_context, refuse_split_regions
from .handwritten import suspect
from .numbered_parts import is_numbered_part
from .operators import operator_name, writes_in_place
from .reasons import Reason, Unsupported
from .residual import SUMS, carries, ends_with_sum
from .shapes import Size, is_tensor, same, shape_of, value_of
from .signature import signature
from .token_flow import find_cuts, find_tokens, refuse_float_sizes, refuse_other_tokens, token_dependent


@dataclass(frozen=True)
class Block:
    """One block of the step graph.

    Attributes:
        layer: position in the step, 0-based.
        entry: the hidden state [R, L, C] that enters; `exit`: the one that leaves.
        nodes: the block's nodes in execution order, `exit` last.
        attention: its self-attention; None for a sublayer without one.
    """

    layer: int
    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    attention: AttentionCall | None

    @cached_property
    def structure(self) -> Hashable:
        """Equal for blocks that compute the same of inputs of the same kinds."""
        return signature(self.entry, self.nodes)


@dataclass(frozen=True)
class StepFacts:
    """What is known of a scale step: its token count, token input, blocks, and what they are cut at.

    `cuts` are hidden states that alone are alive where they are computed; `dependent` depends on the tokens.
    """

    length: Size
    hidden: fx.Node
    blocks: tuple[Block, ...]
    cuts: tuple[fx.Node, ...]
    dependent: frozenset[fx.Node]


def read_step(graph: fx.Graph, one_token: bool = False) -> StepFacts:
    """Find the blocks of a scale step.

    Args:
        graph: of the step.
        one_token: find those of a step of one token too, for whoever prunes nothing in them.

    Raises:
        Unsupported: with the reason why the graph as a whole must stay dense.
    """
    calls = attention_calls(graph)
    if not calls:
        raise refused(graph) or suspect(graph) or Unsupported(Reason.NO_ATTENTION)
    length, hidden = find_tokens(graph, calls)
    if same(length, sympy.Integer(1)) and not one_token:
        raise Unsupported(Reason.ONE_TOKEN, calls[0].node)
    refuse_other_tokens(graph, calls, hidden)
    dependent = token_dependent(graph, hidden)
    own = [call for call in calls if call.key in dependent and same(call.query_length, length)]
    if not own:
        nothing = Unsupported(Reason.NO_ATTENTION, calls[0].node, "no attention over the scale's own tokens")
        raise refused(graph) or nothing
    refuse_float_sizes(graph)
    order = {node: at for at, node in enumerate(graph.nodes)}
    cuts = find_cuts(graph, hidden, dependent, length)
    blocks = _blocks(graph, own, cuts, dependent, order, length)
    try:
        refuse_split_regions(graph, [block.nodes for block in blocks])
    except Unsupported as verdict:
        # A block mask that the graph makes is such a region; what it is for says more.
        verdict.fallback = next((call.verdict for call in own if call.verdict), verdict.fallback)
        raise
    return StepFacts(length, hidden, blocks, tuple(cuts), frozenset(dependent))


def _blocks(
    graph: fx.Graph,
    calls: Sequence[AttentionCall],
    cuts: Sequence[fx.Node],
    dependent: set[fx.Node],
    order: dict[fx.Node, int],
    length: Size,
) -> tuple[Block, ...]:
    starts = []
    for call in calls:
        before = [cut for cut in cuts if cut.op == "placeholder" or order[cut] < order[call.node]]
        starts.append(before[-1])
        if starts.count(before[-1]) > 1:
            raise Unsupported(Reason.NO_BLOCK, call.node, "two attentions between the same two cuts")
    blocks: list[Block] = []
    for layer, call in enumerate(calls):
        if layer + 1 < len(calls):
            leave = _before_positions(starts[layer + 1], cuts, dependent, length)
            if leave.op == "placeholder" or order[leave] <= order[call.node]:
                leave = starts[layer + 1]
            leave = before_mixed_rows(graph, call.node, cuts, leave, order)
            block = _block(graph, layer, call, starts[layer], leave, dependent, order)
        else:
            block = _last_block(graph, layer, call, starts[layer], cuts, dependent, order, length, blocks)
        if not all(same(a, b) for a, b in zip(shape_of(block.entry), shape_of(block.exit), strict=True)):
            raise Unsupported(Reason.NO_BLOCK, call.node, "the block changes the shape of the hidden state")
        blocks.append(block)
    return tuple(blocks)


def _before_positions(
    cut: fx.Node, cuts: Sequence[fx.Node], dependent: set[fx.Node], length: Size
) -> fx.Node:
    """The cut before the sums that add position tables [L, C] to the stream.

    They stay outside the block before them: its pruned tokens need their positions in the next layer as much
    as the others.
    """
    while cut.op != "placeholder" and operator_name(cut) in SUMS:
        stream = [operand for operand in cut.all_input_nodes if operand in cuts]
        tables = [operand for operand in cut.all_input_nodes if _is_table(operand, dependent, length)]
        if len(stream) != 1 or len(tables) != 1:
            break
        cut = stream[0]
    return cut


def _is_table(node: fx.Node, dependent: set[fx.Node], length: Size) -> bool:
    if node in dependent or not is_tensor(node):
        return False
    shape = shape_of(node)
    return len(shape) >= 2 and same(shape[-2], length)


def _block(
    graph: fx.Graph,
    layer: int,
    call: AttentionCall,
    entry: fx.Node,
    leave: fx.Node,
    dependent: set[fx.Node],
    order: dict[fx.Node, int],
) -> Block:
    """Nodes between two cuts: the token-dependent ones, what only they use, and autocast regions.

    Sizes, and caches made for the block, come in from outside.
    """
    first = -1 if entry.op == "placeholder" else order[entry]
    inside = [
        node for node in graph.nodes if first < order[node] <= order[leave] and node.op != "placeholder"
    ]
    members = {node for node in inside if node in dependent or is_context(node)}
    for node in reversed(inside):
        if node not in members and _may_move(node) and all(user in members for user in node.users):
            members.add(node)
    for node in inside:
        # A tuple of tensors cannot be an input: its elements are taken outside, where the tuple is.
        of_bundle = any(_is_bundle(operand) and operand not in members for operand in node.all_input_nodes)
        if node not in dependent and (of_bundle or is_numbered_part(node)):
            members.discard(node)
    return Block(layer, entry, leave, tuple(node for node in inside if node in members), call)


def _may_move(node: fx.Node) -> bool:
    """Whether a node that the tokens do not reach may move into the one block that uses it.

    Numbers computed from sizes stay outside: the first cache row to write must be an input of the block, and
    whatever else is computed from L has to be computed from all L tokens.
    """
    number = isinstance(value_of(node), (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))
    dead_effect = not node.users and (writes_in_place(node) or operator_name(node) == "setitem")
    return not number and not dead_effect and CACHE_HOLDER not in node.meta


def _is_bundle(node: fx.Node) -> bool:
    return isinstance(value_of(node), (tuple, list))


def _last_block(
    graph: fx.Graph,
    layer: int,
    call: AttentionCall,
    entry: fx.Node,
    cuts: Sequence[fx.Node],
    dependent: set[fx.Node],
    order: dict[fx.Node, int],
    length: Size,
    before: Sequence[Block],
) -> Block:
    later = [cut for cut in cuts if cut.op != "placeholder" and order[cut] > order[call.node]]
    known = {block.structure for block in before}
    for leave in reversed(later):
        block = _block(graph, layer, call, entry, leave, dependent, order)
        if block.structure in known:
            return block
    # A single block, or a last one of its own kind: it ends with the last sum that adds to the stream.
    # Another sum, such as the shift of a head's modulation, does not end it.
    for leave in reversed(later):
        if leave is not entry and ends_with_sum(leave, entry) and carries(leave, entry):
            whole = _before_positions(leave, cuts, dependent, length)
            if whole.op != "placeholder" and order[whole] > order[call.node]:
                leave = whole
            return _block(graph, layer, call, entry, leave, dependent, order)
    raise Unsupported(Reason.NO_BLOCK, call.node, "no residual sum follows the last attention")
