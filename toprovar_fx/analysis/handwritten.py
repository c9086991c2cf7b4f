"""Attention written out in single operators, found by structure: a product, a softmax, and another product.

This tells where such attentions are; `scores.py` proves that they are what they seem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx

from .contractions import Contraction, read_contraction
from .operators import operator_name
from .reasons import Reason, Unsupported
from .rules import POINTWISE
from .shapes import is_tensor

SOFTMAX = frozenset({"softmax", "_softmax"})
_VIEWS = """
view reshape flatten unflatten permute transpose swapaxes unsqueeze squeeze expand getitem dropout
"""
_GLUE = POINTWISE | SOFTMAX | frozenset(_VIEWS.split())
# What people write in place of a softmax.
_SOFTMAX_LIKE = SOFTMAX | {"log_softmax", "exp", "exp_", "softmin", "logsumexp"}
_AROUND_SOFTMAX = _GLUE | _SOFTMAX_LIKE | {"max", "amax", "sum", "topk", "sort", "scatter", "gather"}


@dataclass(frozen=True)
class Handwritten:
    """Nodes of an attention in single operators.

    Attributes:
        scores: the product of queries and keys; `query`, `key`: its operands.
        logits: what enters the softmax.
        result: the product of the softmax and the values; `value`: its other operand.
        query_axis: dimension of the queries' tokens in `query`.
    """

    scores: fx.Node
    query: fx.Node
    key: fx.Node
    logits: fx.Node
    value: fx.Node
    result: fx.Node
    query_axis: int


def handwritten_attentions(graph: fx.Graph) -> list[Handwritten]:
    """Every product-softmax-product of a graph, in the order of the softmaxes."""
    found = [_around(node) for node in graph.nodes if _calls(node, SOFTMAX)]
    return [attention for attention in found if attention is not None]


def suspect(graph: fx.Graph) -> Unsupported | None:
    """A verdict on the first thing like a softmax of a product that is no attention as understood here."""
    for node in graph.nodes:
        if _calls(node, _SOFTMAX_LIKE) and _products(node.all_input_nodes, _AROUND_SOFTMAX, _operands):
            return Unsupported(Reason.HANDWRITTEN_ATTENTION, node, f"{operator_name(node)} of a product")
    return None


def _calls(node: fx.Node, names: frozenset[str] | set[str]) -> bool:
    return node.op in ("call_function", "call_method") and operator_name(node) in names


def _around(softmax: fx.Node) -> Handwritten | None:
    logits = softmax.args[0] if softmax.args else softmax.kwargs.get("input")
    if not isinstance(logits, fx.Node):
        return None
    before = _products([logits], _GLUE, _operands)
    after = _products(list(softmax.users), _GLUE, lambda node: list(node.users))
    if len(before) != 1 or len(after) != 1:
        return None
    scores, result = before.pop(), after.pop()
    product, weighted = read_contraction(scores), read_contraction(result)
    if product is None or weighted is None:
        return None
    query_axis = _query_axis(product)
    weights = [operand for operand in weighted.operands if _leads_to(operand, softmax)]
    if query_axis is None or len(weights) != 1:
        return None
    query, key = product.operands
    return Handwritten(scores, query, key, logits, weighted.other(weights[0])[0], result, query_axis)


def _query_axis(product: Contraction) -> int | None:
    """Dimension of the left operand that the result has and the right operand does not."""
    left, right = product.labels
    own = [at for at, label in enumerate(left) if label in product.out and label not in right]
    return own[0] if len(own) == 1 else None


def _products(
    start: Iterable[fx.Node], through: frozenset[str] | set[str], onward: Callable[[fx.Node], list[fx.Node]]
) -> set[fx.Node]:
    """The products that can be reached from `start` through operators of these names alone."""
    found, seen, stack = set(), set(), list(start)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if read_contraction(node) is not None:
            found.add(node)
        elif _calls(node, through):
            stack.extend(onward(node))
    return found


def _operands(node: fx.Node) -> list[fx.Node]:
    return [
        operand for operand in node.all_input_nodes if is_tensor(operand) or operator_name(operand) == "max"
    ]


def _leads_to(node: fx.Node, source: fx.Node) -> bool:
    """Whether `node` is computed from `source` through pointwise operators and views."""
    return node is source or (_calls(node, _GLUE) and any(_leads_to(o, source) for o in node.all_input_nodes))
