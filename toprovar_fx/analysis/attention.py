"""Attention nodes: which operand is what, and which of them attend over the image's own tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx

from .attention_forms import FORMS, Form, form_of, named_arguments, refuse_variant
from .attention_forms import refused as refused
from .flex import ScoreMod, read_score_mod
from .handwritten import Handwritten, handwritten_attentions
from .reasons import Fallback, Reason, Unsupported
from .shapes import Size, shape_of
from .transfers import Axes

__all__ = ["ATTENTION_NAMES", "AttentionCall", "attention_calls", "read_call", "refused"]

ATTENTION_NAMES = frozenset(FORMS)


@dataclass(frozen=True)
class AttentionCall:
    """One attention with its operands.

    Attributes:
        node: its result; `entry`: the node that takes the queries (the same one for a fused attention).
        query, key, value: operands, [R, H, L, E] or [R, L, H, E] by `heads_first`, of rank 3 without heads.
        mask: the additive or boolean mask, aligned with [R, H, Lq, Lk] from the right.
        scale: the softmax scale as a float (1/sqrt(E) where the call names none); None for a handwritten one.
        heads_first: the layout.
        grouped: the call lets query heads share key heads.
        logits: input of the softmax of a handwritten attention; None for a fused one.
        query_axis: dimension of the queries' tokens.
        score_mod: what FlexAttention does to the scores, or None.
        verdict: why the call is not understood, or None.
    """

    node: fx.Node
    entry: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    query_axis: int
    mask: fx.Node | None = None
    scale: float | None = None
    heads_first: bool = True
    grouped: bool = False
    logits: fx.Node | None = None
    score_mod: ScoreMod | None = None
    verdict: Fallback | None = None

    @property
    def query_length(self) -> Size:
        """Number of queries, the token count of the scale for self-attention."""
        return shape_of(self.query)[self.query_axis]

    @property
    def frame(self) -> tuple[Axes, int]:
        """Rows and query tokens of the logits [R, H, Lq, Lk] (or [R, Lq, Lk]), and their rank."""
        rank = len(shape_of(self.query))
        return Axes(0, rank - 2), rank


def attention_calls(graph: fx.Graph) -> list[AttentionCall]:
    """Every attention of a graph whose operands could be told, in execution order."""
    order = {node: at for at, node in enumerate(graph.nodes)}
    calls = [read_call(node, form) for node in graph.nodes if (form := form_of(node)) is not None]
    calls += [_from_operators(found) for found in handwritten_attentions(graph)]
    return sorted(calls, key=lambda call: order[call.node])


def read_call(node: fx.Node, form: Form) -> AttentionCall:
    """Operands of a fused attention, given by position or by keyword; a verdict where it does more."""
    given = named_arguments(node, form)
    query, key, value = (given.get(name) for name in form.parameters[:3])
    if not (isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)):
        raise Unsupported(Reason.NO_ATTENTION, node, "the operands are not tensors of the graph")
    mask, scale, verdict, score_mod = given.get(form.mask), given.get(form.scale), None, None
    rank = len(shape_of(query))
    try:
        refuse_variant(node, form, given)
        if scale is None:
            scale = 1.0 / math.sqrt(int(shape_of(query)[-1]))
        if not isinstance(scale, (int, float)):
            raise Unsupported(Reason.UNKNOWN_OPERATOR, node, "the softmax scale is not a constant")
        if mask is not None and not isinstance(mask, fx.Node):
            raise Unsupported(Reason.ATTENTION_VARIANT, node, f"{form.mask}={mask}")
        if rank not in (3, 4):
            raise Unsupported(Reason.ATTENTION_VARIANT, node, f"operands of rank {rank}")
        if form is FORMS["flex_attention"]:
            score_mod = read_score_mod(node)
    except Unsupported as refusal:
        verdict, scale = refusal.fallback, None
    return AttentionCall(
        node=node if form.result is None else _element(node, form.result),
        entry=node,
        query=query,
        key=key,
        value=value,
        query_axis=rank - 2 if form.heads_first or rank == 3 else rank - 3,
        mask=mask if isinstance(mask, fx.Node) else None,
        scale=None if scale is None else float(scale),
        heads_first=form.heads_first or rank == 3,
        grouped=not form.grouped or bool(given.get(form.grouped, False)),
        score_mod=score_mod,
        verdict=verdict,
    )


def _element(node: fx.Node, at: int) -> fx.Node:
    """The node that takes element `at` of a call with several results."""
    for user in node.users:
        if user.op == "call_function" and user.args[1:] == (at,):
            return user
    raise Unsupported(Reason.ATTENTION_VARIANT, node, "its first result is not used")


def _from_operators(found: Handwritten) -> AttentionCall:
    return AttentionCall(
        node=found.result,
        entry=found.scores,
        query=found.query,
        key=found.key,
        value=found.value,
        query_axis=found.query_axis,
        logits=found.logits,
    )
