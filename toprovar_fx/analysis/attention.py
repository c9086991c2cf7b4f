"""Attention nodes: which operand is what, and which of them attend over the image's own tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from .operators import operator_name
from .reasons import Reason, Unsupported
from .shapes import Size, shape_of

ATTENTION_NAMES = frozenset({"scaled_dot_product_attention"})


@dataclass(frozen=True)
class AttentionCall:
    """One attention node with its operands; queries are [R, H, Lq, E], keys [R, Hk, Lk, E].

    `scale` is the softmax scale as a float (1/sqrt(E) where the call names none).
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    causal: bool
    scale: float

    @property
    def query_length(self) -> Size:
        """Number of queries, the token count of the scale for self-attention."""
        return shape_of(self.query)[-2]


def attention_calls(graph: fx.Graph) -> list[AttentionCall]:
    """Every attention node of a graph, in execution order."""
    return [read_call(node) for node in graph.nodes if operator_name(node) in ATTENTION_NAMES]


def read_call(node: fx.Node) -> AttentionCall:
    """Operands of `scaled_dot_product_attention`, given by position or by keyword."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: Mapping[str, object] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    query, key, value = (given[name] for name in names[:3])
    if not (isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)):
        raise Unsupported(Reason.NO_ATTENTION, node, "the operands are not tensors of the graph")
    mask = given.get("attn_mask")
    scale = given.get("scale")
    if scale is None:
        scale = 1.0 / math.sqrt(int(shape_of(query)[-1]))
    if not isinstance(scale, (int, float)):
        raise Unsupported(Reason.UNKNOWN_OPERATOR, node, "the softmax scale is not a constant")
    causal = bool(given.get("is_causal", False))
    return AttentionCall(
        node, query, key, value, mask if isinstance(mask, fx.Node) else None, causal, float(scale)
    )
