"""Attention scores in a block graph: values with one row per token and one column per key.

A handwritten attention is understood by following two axes at once. A product of queries and keys makes
scores; every operator between it and the product with the values must leave rows (by `facts.axes`) and
columns (by `facts.keyed`) in place, and a softmax must run over the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .attention import AttentionCall
from .contractions import Contraction
from .facts import BlockFacts
from .handwritten import SOFTMAX
from .operators import argument, operator_name, value_operands
from .reasons import Reason, Unsupported
from .rules import transfer
from .shapes import same, shape_of
from .transfers import Axes, Transfer

_MISREAD = (Reason.UNKNOWN_OPERATOR, Reason.TOKEN_MIXING, Reason.RESHAPED_TOKENS)


@dataclass(frozen=True)
class Scores:
    """Where scores come from: the product, its queries and keys, and the softmax's input once it has run."""

    product: fx.Node
    query: fx.Node
    key: fx.Node
    logits: fx.Node | None = None


class ScoreReader:
    """Follows scores through a block, node by node, and writes what it finds into the block's facts."""

    def __init__(self, facts: BlockFacts) -> None:
        self._facts = facts
        self._scores: dict[fx.Node, Scores] = {}

    def touches(self, node: fx.Node) -> bool:
        """Whether one of the operands is a matrix of scores."""
        return any(operand in self._scores for operand in value_operands(node))

    def operator(self, node: fx.Node) -> None:
        """An operator on scores that is no product."""
        facts = self._facts
        origins = {self._scores[operand] for operand in value_operands(node) if operand in self._scores}
        if len(origins) != 1:
            raise _refusal(node, "scores of two attentions meet")
        (origin,) = origins
        if operator_name(node) in SOFTMAX:
            self._softmax(node, origin)
            return
        columns = _columns(facts, node)
        try:
            rows = transfer(node, facts.axes, facts.length)
            keys = transfer(node, facts.keyed, columns)
        except Unsupported as verdict:
            if verdict.fallback.reason not in _MISREAD:
                raise
            detail = verdict.fallback.detail or operator_name(node)
            raise _refusal(node, detail) from verdict
        if (rows.axes.batch, rows.axes.spread) != (keys.axes.batch, keys.axes.spread):
            raise _refusal(node, "rows and columns lie in different batch rows")
        facts.note(node, rows)
        facts.keyed[node] = keys.axes
        facts.add_key_tables(node, keys.tables)
        self._scores[node] = origin

    def _softmax(self, node: fx.Node, origin: Scores) -> None:
        facts, logits = self._facts, node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(logits, fx.Node)
        dim = argument(node, 1, "dim")
        if origin.logits is not None or dim is None or not isinstance(dim, int):
            raise _refusal(node, "a second softmax, or one without a dimension")
        if dim % len(shape_of(logits)) != facts.keyed[logits].token:
            raise _refusal(node, "the softmax does not run over the keys")
        facts.note(node, Transfer(facts.axes[logits]))
        facts.keyed[node] = facts.keyed[logits]
        self._scores[node] = Scores(origin.product, origin.query, origin.key, logits)

    def product(self, node: fx.Node, product: Contraction) -> AttentionCall | None:
        """A product of two tensors, one of which at least has token rows or key rows.

        Returns the attention that it completes, if it is the product of a softmax with the values.
        """
        left, right = product.operands
        for weights in (left, right):
            if weights in self._scores:
                return self._of_scores(node, product, weights)
        rows = [operand for operand in (left, right) if operand in self._facts.axes]
        keys = [operand for operand in (left, right) if operand in self._facts.keyed]
        if len(rows) == 2:
            self._of_rows(node, product)
        elif rows and keys:
            self._make(node, product, rows[0], keys[0], self._facts.keyed[keys[0]])
        elif rows:
            axes = self._facts.axes[rows[0]]
            self._facts.note(node, Transfer(_placed(node, product, rows[0], axes)))
            _refuse_summand(node, product)
        else:
            axes = self._facts.keyed[keys[0]]
            self._facts.keyed[node] = _placed(node, product, keys[0], axes)
            _refuse_summand(node, product)
        return None

    def _of_rows(self, node: fx.Node, product: Contraction) -> None:
        """Both operands have token rows: paired row by row, or queries and the keys of the same scale."""
        facts, (left, right) = self._facts, product.operands
        tokens = [
            labels[facts.axes[operand].token]
            for operand, labels in zip(product.operands, product.labels, strict=True)
        ]
        if tokens[0] == tokens[1] and tokens[0] in product.out:
            labels = product.labels[0]
            batch = labels[facts.axes[left].batch]
            if product.labels[1][facts.axes[right].batch] != batch or batch not in product.out:
                raise Unsupported(Reason.TOKEN_MIXING, node, "the operands' batch rows do not pair")
            axes = Axes(product.out.index(batch), product.out.index(tokens[0]), facts.axes[left].spread)
            facts.note(node, Transfer(axes))
            _refuse_summand(node, product)
        elif tokens[0] not in product.out or tokens[1] not in product.out:
            raise Unsupported(Reason.TOKEN_MIXING, node, "the product sums over the tokens")
        else:
            self._make(node, product, left, right, facts.axes[right])

    def _make(self, node: fx.Node, product: Contraction, query: fx.Node, key: fx.Node, keyed: Axes) -> None:
        """Scores: rows of the queries, columns of the keys."""
        facts = self._facts
        rows = _placed(node, product, query, facts.axes[query])
        columns = _placed(node, product, key, keyed)
        if rows.token == columns.token or rows.batch != columns.batch or rows.spread != columns.spread:
            raise _refusal(node, "queries and keys do not pair by batch row")
        tables: tuple[tuple[fx.Node, int], ...] = ()
        if product.summand is not None and product.unread:
            facts.unread.add(node)
        elif product.summand is not None:
            tables = self._bias(node, product.summand, rows, columns)
        facts.note(node, Transfer(rows, tables), operands=(query,))
        facts.keyed[node] = columns
        self._scores[node] = Scores(node, query, key)

    def _bias(
        self, node: fx.Node, bias: fx.Node, rows: Axes, columns: Axes
    ) -> tuple[tuple[fx.Node, int], ...]:
        """Tables of what `baddbmm` adds to the product."""
        facts, sizes = self._facts, shape_of(bias)
        missing = len(shape_of(node)) - len(sizes)
        if bias in facts.axes or bias in facts.keyed:
            raise _refusal(node, "what is added to the product is computed from tokens")
        at = [(axes.token - missing) for axes in (rows, columns)]
        if at[1] >= 0 and sizes[at[1]] != 1:
            facts.add_key_tables(node, ((bias, at[1]),))
        return ((bias, at[0]),) if at[0] >= 0 and sizes[at[0]] != 1 else ()

    def _of_scores(self, node: fx.Node, product: Contraction, weights: fx.Node) -> AttentionCall | None:
        facts, origin = self._facts, self._scores[weights]
        other, labels = product.other(weights)
        own = product.labels[product.operands.index(weights)]
        rows, columns = facts.axes[weights], facts.keyed[weights]
        token, key = own[rows.token], own[columns.token]
        if other in self._scores:
            raise _refusal(node, "scores are multiplied with scores")
        if other not in facts.axes and other not in facts.keyed:
            # Heads may be mixed, before the softmax or after it.
            facts.note(node, Transfer(_placed(node, product, weights, rows)))
            facts.keyed[node] = _placed(node, product, weights, columns)
            _refuse_summand(node, product)
            self._scores[node] = origin
            return None
        cached = other in facts.keyed
        axes = facts.keyed[other] if cached else facts.axes[other]
        if cached != (origin.key in facts.keyed):
            raise Unsupported(Reason.TOKEN_MIXING, node, "keys and values have different sources")
        if origin.logits is None:
            raise _refusal(node, "scores are multiplied with values before a softmax")
        if labels[axes.token] != key or key in product.out or token in labels:
            raise _refusal(node, "the product with the values does not sum over the keys")
        if labels[axes.batch] != own[rows.batch] or axes.spread != rows.spread:
            raise _refusal(node, "weights and values do not pair by batch row")
        facts.note(node, Transfer(_placed(node, product, weights, rows)), operands=(weights,))
        _refuse_summand(node, product)
        return AttentionCall(
            node=node,
            entry=origin.product,
            query=origin.query,
            key=origin.key,
            value=other,
            query_axis=facts.axes[origin.query].token,
            logits=origin.logits,
        )


def _placed(node: fx.Node, product: Contraction, operand: fx.Node, axes: Axes) -> Axes:
    """Axes in the result, where batch rows and tokens of `operand` are kept apart by the product."""
    labels = product.labels[product.operands.index(operand)]
    _, others = product.other(operand)
    batch, token = labels[axes.batch], labels[axes.token]
    if token in others or token not in product.out:
        raise Unsupported(Reason.TOKEN_MIXING, node, "the product runs over the tokens")
    if batch not in product.out:
        raise Unsupported(Reason.TOKEN_MIXING, node, "the product sums over the batch rows")
    placed = Axes(product.out.index(batch), product.out.index(token), axes.spread)
    if not same(shape_of(node)[placed.token], shape_of(operand)[axes.token]):
        raise Unsupported(Reason.RESHAPED_TOKENS, node, f"shape {list(shape_of(node))}")
    return placed


def _columns(facts: BlockFacts, node: fx.Node) -> object:
    operand = next(operand for operand in value_operands(node) if operand in facts.keyed)
    return shape_of(operand)[facts.keyed[operand].token]


def _refuse_summand(node: fx.Node, product: Contraction) -> None:
    if product.summand is not None:
        raise Unsupported(Reason.UNKNOWN_OPERATOR, node, "baddbmm of something else than queries and keys")


def _refusal(node: fx.Node, detail: str) -> Unsupported:
    return Unsupported(Reason.HANDWRITTEN_ATTENTION, node, detail)
