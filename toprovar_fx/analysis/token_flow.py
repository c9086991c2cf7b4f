"""Where a step's tokens come in, what depends on them, and where they alone are alive."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import fx

from .attention import AttentionCall
from .caches import written_caches
from .operators import operator_name
from .reasons import Reason, Unsupported
from .rules import transfer
from .shapes import Size, is_tensor, same, shape_of, size_of, value_of
from .transfers import Axes


def refuse_float_sizes(graph: fx.Graph) -> None:
    """Refuse a graph in which a number computed from sizes, such as 1 / L, meets a tensor."""
    for node in graph.nodes:
        for operand in node.all_input_nodes if is_tensor(node) else ():
            value = value_of(operand)
            if isinstance(value, torch.SymFloat):
                raise Unsupported(Reason.LENGTH_IN_ARITHMETIC, node, str(value.node.expr))


def find_tokens(graph: fx.Graph, calls: Sequence[AttentionCall]) -> tuple[Size, fx.Node]:
    """The token count and the token input, by the first attention whose queries are a scale's tokens.

    Where one count is a symbol, a number is that of something else, such as a text.
    """
    verdicts = []
    for call in sorted(calls, key=lambda call: call.query_length.is_Integer):
        try:
            return call.query_length, _token_input(graph, call, call.query_length)
        except Unsupported as verdict:
            verdicts.append(verdict)
    raise verdicts[0]


def refuse_other_tokens(graph: fx.Graph, calls: Sequence[AttentionCall], hidden: fx.Node) -> None:
    """Refuse a graph in which attention runs over the rows of several inputs, constant ones or symbolic ones.

    Nothing would say which of them are the scale's tokens, and which are those of a text.
    """
    constant = shape_of(hidden)[1].is_Integer
    for call in calls:
        if call.query_length.is_Integer != constant:
            continue
        other = None
        with suppress(Unsupported):
            other = _token_input(graph, call, call.query_length)
        if other not in (None, hidden):
            detail = f"attention runs over the rows of {hidden.name} and of {other.name}"
            raise Unsupported(Reason.AMBIGUOUS_LENGTH, call.node, detail)


def _token_input(graph: fx.Graph, call: AttentionCall, length: Size) -> fx.Node:
    """The graph input [R, L, C] that the first attention's queries depend on."""
    ancestors: set[fx.Node] = set()
    stack = [call.query]
    while stack:
        node = stack.pop()
        if node not in ancestors:
            ancestors.add(node)
            stack.extend(node.all_input_nodes)
    found = [
        node
        for node in graph.nodes
        if node.op == "placeholder"
        and node in ancestors
        and is_tensor(node)
        and len(shape_of(node)) == 3
        and same(shape_of(node)[1], length)
    ]
    if len(found) > 1 and length.is_Integer:
        return _with_token_rows(graph, call, length, found)
    if len(found) != 1:
        raise Unsupported(Reason.NO_TOKEN_AXIS, call.node, f"candidates: {[node.name for node in found]}")
    # A number may be that of other sizes too: rows are told by their axis, and one token is never pruned.
    if not length.is_Integer and sum(same(size, length) for size in shape_of(found[0])) != 1:
        raise Unsupported(Reason.AMBIGUOUS_LENGTH, found[0], f"shape {list(shape_of(found[0]))}")
    return found[0]


def _with_token_rows(
    graph: fx.Graph, call: AttentionCall, length: Size, candidates: Sequence[fx.Node]
) -> fx.Node:
    """The one input whose row i alone, by the rules of all operators between, makes query i.

    Where the token count is a number, another input may have as many rows of another kind: the six vectors
    of a modulation, or the tokens of a text.

    Raises:
        Unsupported: none is proven to be it, or several are.
    """
    proven = [node for node in candidates if _rows_arrive(graph, node, call, length)]
    if len(proven) != 1:
        names = ", ".join(node.name for node in proven or candidates)
        raise Unsupported(
            Reason.AMBIGUOUS_LENGTH, call.node, f"{length} rows may be the tokens of each of {names}"
        )
    return proven[0]


def _rows_arrive(graph: fx.Graph, hidden: fx.Node, call: AttentionCall, length: Size) -> bool:
    tagged = {hidden: Axes(0, 1)}
    for node in graph.nodes:
        if any(operand in tagged for operand in node.all_input_nodes):
            with suppress(Unsupported):
                tagged[node] = transfer(node, tagged, length).axes
        if node is call.query:
            break
    found = tagged.get(call.query)
    return found is not None and found.token == call.query_axis


def token_dependent(graph: fx.Graph, hidden: fx.Node) -> set[fx.Node]:
    """Nodes that depend on the tokens, reads of a written cache included."""
    dependent = {hidden}
    written: set[fx.Node] = set()
    caches = written_caches(graph)
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        inputs = node.all_input_nodes
        # How many tokens there are does not depend on what they hold.
        if operator_name(node) == "size" and size_of(node) is not None and inputs[0].op == "placeholder":
            continue
        if any(operand in dependent or operand in written for operand in inputs):
            dependent.add(node)
            if operator_name(node) == "setitem" and node.args[0] in caches:
                written.add(node.args[0])
    return dependent


def find_cuts(graph: fx.Graph, hidden: fx.Node, dependent: set[fx.Node], length: Size) -> list[fx.Node]:
    """Hidden states [R, L, C] that alone are alive right after they are computed, in execution order."""
    order = {node: at for at, node in enumerate(graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=-1) for node in dependent}
    cuts, alive = [hidden], {hidden}
    for node in graph.nodes:
        if node not in dependent or node is hidden:
            continue
        at = order[node]
        if last_use[node] > at:
            alive.add(node)
        alive = {value for value in alive if last_use[value] > at}
        if alive == {node} and is_tensor(node):
            shape = shape_of(node)
            if len(shape) == 3 and same(shape[1], length):
                cuts.append(node)
    return cuts
