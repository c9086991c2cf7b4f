"""Entropy beside an attention: which operator computes it for which form of attention."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx

from ..analysis.attention import AttentionCall
from ..analysis.facts import BlockFacts
from ..analysis.flex import given_to_flex
from ..analysis.shapes import same, shape_of
from ..analysis.transfers import Axes
from ..ops import attention_entropy, attention_with_entropy, logits_entropy  # noqa: F401 - registers operators
from ..ops.flex_scores import flex_scores

Value = Callable[[fx.Node], fx.Node]


def attend_and_measure(
    graph: fx.Graph, call: AttentionCall, query: fx.Node, value_of: Value, first: fx.Node | int
) -> tuple[fx.Node, fx.Node] | None:
    """Attention by the one operator that also returns the entropies, where the call is no more than that.

    Args:
        graph: the graph that is being written.
        call: the self-attention.
        query: its queries in `graph`, [R, H, K or L, E] or [R, K or L, H, E].
        value_of: the value in `graph` of another node of the block.
        first: first key that counts for the entropy.

    Returns:
        The attended values in the call's layout and the entropies [R, K or L]; None if the call has a mask,
        no dimension of heads, or several results.
    """
    plain = call.mask is None and call.node is call.entry and len(shape_of(call.query)) == 4
    if not plain or not _heads_pair(call):
        return None
    operands = query, value_of(call.key), value_of(call.value)
    if not call.heads_first:
        operands = tuple(_heads_first(graph, operand) for operand in operands)  # type: ignore[assignment]
    both = graph.call_function(
        torch.ops.toprovar.attention_with_entropy.default, (*operands, call.scale, True, first)
    )
    attended = graph.call_function(operator.getitem, (both, 0))
    if not call.heads_first:
        attended = _heads_first(graph, attended)
    return attended, graph.call_function(operator.getitem, (both, 1))


def measure_operands(
    graph: fx.Graph,
    call: AttentionCall,
    query: fx.Node,
    axes: Axes,
    value_of: Value,
    mask: fx.Node | None,
    first: fx.Node | int,
) -> fx.Node:
    """Entropies [R, K or L] from the queries, keys and mask of a fused attention that runs as it is.

    Args:
        graph: the graph that is being written.
        call: the self-attention.
        query: its queries in `graph`.
        axes: batch rows and tokens of the queries.
        value_of: the value in `graph` of another node of the block.
        mask: the mask in `graph`; where its rows were gathered as those of `query`, it has every batch row.
        first: first key that counts.
    """
    operands = []
    for source, operand in ((call.query, query), (call.key, value_of(call.key))):
        if len(shape_of(source)) == 3:
            operand = graph.call_method("unflatten", (operand, 0, (-1, axes.spread)))
        elif not call.heads_first:
            operand = _heads_first(graph, operand)
        operands.append(operand)
    if mask is None:
        return graph.call_function(
            torch.ops.toprovar.attention_entropy.default, (*operands, call.scale, True, first)
        )
    assert call.mask is not None
    gathered, sizes = mask is not value_of(call.mask), shape_of(call.mask)
    if len(shape_of(call.query)) == 3 and (gathered or len(sizes) == 3):
        # Its first dimension holds batch rows and heads in one, or one entry for all.
        spread = axes.spread if gathered or sizes[0] != 1 else 1
        mask = graph.call_method("unflatten", (mask, 0, (-1, spread)))
    return graph.call_function(
        torch.ops.toprovar.masked_attention_entropy.default, (*operands, mask, call.scale, True, first)
    )


def measure_logits(graph: fx.Graph, facts: BlockFacts, logits: fx.Node, first: fx.Node | int) -> fx.Node:
    """Entropies [R, K or L] from what enters the softmax of a handwritten attention.

    Args:
        graph: the graph that is being written.
        facts: of the block.
        logits: the logits in `graph`.
        first: first key that counts.
    """
    assert facts.attention is not None
    source = facts.attention.logits
    assert source is not None
    rows, columns, rank = facts.axes[source], facts.keyed[source], len(shape_of(source))
    heads = [at for at in range(rank) if at not in (rows.batch, rows.token, columns.token)]
    order = (rows.batch, *heads, rows.token, columns.token)
    if order != tuple(range(rank)):
        logits = graph.call_method("permute", (logits, *order))
    if rank == 3:
        logits = graph.call_method("unflatten", (logits, 0, (-1, rows.spread)))
    return graph.call_function(torch.ops.toprovar.logits_entropy.default, (logits, True, first))


def measure_scores(graph: fx.Graph, attention: fx.Node, first: fx.Node | int) -> fx.Node:
    """Entropies [R, K or L] of a FlexAttention that changes its scores: these are computed once more.

    Args:
        graph: the graph that is being written.
        attention: the FlexAttention in `graph`.
        first: first key that counts.
    """
    given = given_to_flex(attention)
    operands = (given[name] for name in ("query", "key", "score_mod", "scale", "score_mod_other_buffers"))
    scores = graph.call_function(flex_scores, tuple(operands))  # type: ignore[arg-type]
    return graph.call_function(torch.ops.toprovar.logits_entropy.default, (scores, True, first))


def _heads_first(graph: fx.Graph, value: fx.Node) -> fx.Node:
    return graph.call_method("transpose", (value, 1, 2))


def _heads_pair(call: AttentionCall) -> bool:
    """Whether every query head has a key head of its own, or the call itself shares key heads in groups."""
    axis = 1 if call.heads_first else 2
    heads = [shape_of(operand)[axis] for operand in (call.query, call.key, call.value)]
    return call.grouped or all(same(count, heads[0]) for count in heads)
