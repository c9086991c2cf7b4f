"""Products of two tensors read as einsum: a label for every dimension of both operands and of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from .operators import argument, operator_name
from .shapes import is_tensor, shape_of

Labels = tuple[object, ...]
CONTRACTIONS = frozenset({"matmul", "bmm", "baddbmm", "einsum"})


@dataclass(frozen=True)
class Contraction:
    """A product of two operands.

    Attributes:
        operands: left and right.
        labels: of the dimensions of left and right; a label in both is summed over unless the result has it.
        out: labels of the result.
        summand: what `baddbmm` adds to the product; `unread` where its factor is 0, so that its shape alone
            counts.
    """

    operands: tuple[fx.Node, fx.Node]
    labels: tuple[Labels, Labels]
    out: Labels
    summand: fx.Node | None = None
    unread: bool = False

    def other(self, operand: fx.Node) -> tuple[fx.Node, Labels]:
        """The operand that `operand` is multiplied with, and its labels."""
        at = 1 - self.operands.index(operand)
        return self.operands[at], self.labels[at]


def read_contraction(node: fx.Node) -> Contraction | None:
    """The product that a node computes; None if it is none, or not one of two tensors of two or more axes."""
    if node.op not in ("call_function", "call_method") or operator_name(node) not in CONTRACTIONS:
        return None
    name = operator_name(node)
    if name == "einsum":
        return _einsum(node)
    if name == "baddbmm":
        summand, left, right = (
            argument(node, at, key) for at, key in enumerate(("input", "batch1", "batch2"))
        )
        unread = bool(node.kwargs.get("beta", 1) == 0)
    else:
        names = ("input", "other" if name == "matmul" else "mat2")
        summand, unread = None, False
        left, right = (argument(node, at, key) for at, key in enumerate(names))
    if not (
        isinstance(left, fx.Node) and isinstance(right, fx.Node) and is_tensor(left) and is_tensor(right)
    ):
        return None
    ranks = len(shape_of(left)), len(shape_of(right))
    if min(ranks) < 2 or not (summand is None or isinstance(summand, fx.Node)):
        return None
    shared = tuple(range(max(ranks) - 2))
    left_labels = (*shared[max(ranks) - ranks[0] :], "m", "k")
    right_labels = (*shared[max(ranks) - ranks[1] :], "k", "n")
    return Contraction((left, right), (left_labels, right_labels), (*shared, "m", "n"), summand, unread)


def _einsum(node: fx.Node) -> Contraction | None:
    """`einsum` of two operands with a written result; `...` stands for the dimensions in front."""
    equation, *rest = node.args
    operands: Sequence[object] = rest
    if len(rest) == 1 and isinstance(rest[0], (tuple, list)):
        operands = rest[0]
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return None
    left, right = operands
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
        return None
    inputs, _, result = equation.replace(" ", "").partition("->")
    terms = [*inputs.split(","), result]
    if len(terms) != 3:
        return None
    found = [
        _spelled(term, len(shape_of(value))) for term, value in zip(terms, (left, right, node), strict=True)
    ]
    if any(labels is None or len(set(labels)) != len(labels) for labels in found):
        return None
    first, second, out = (labels for labels in found if labels is not None)
    return Contraction((left, right), (first, second), out)


def _spelled(term: str, rank: int) -> Labels | None:
    """Labels of a term; dimensions under `...` are numbered from the right, so that they broadcast."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        return None
    return (*before, *range(-hidden, 0), *after)
