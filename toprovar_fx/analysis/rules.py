"""How each operator carries the token axis: the rules by which rows may be dropped before it.

A rule answers one question: given that an operand has its tokens on some axis, on which axis of the result
are they, and does row i of the result depend on row i of the operands alone? An operator without a rule stops
the rewrite of its block (`Reason.UNKNOWN_OPERATOR`); one that mixes rows stops it too.
"""

from __future__ import annotations

from torch import fx

from . import rules_of_computing as computing
from . import rules_of_shape as shaping
from .operators import operator_name
from .reasons import Reason, Unsupported
from .shapes import Size, same, shape_of, value_of
from .transfers import Axes, Rule, Tagged, Transfer

_POINTWISE = """
add sub rsub mul truediv div neg pow exp log sqrt rsqrt reciprocal abs square sin cos erf addcmul lerp where
sigmoid tanh relu relu6 silu gelu mish softplus leaky_relu elu hardswish
clamp clamp_min clamp_max minimum maximum nan_to_num masked_fill eq ne lt le gt ge
logical_and logical_or logical_not
to float half bfloat16 double type type_as contiguous clone detach
iadd imul isub itruediv add_ mul_ sub_ div_ clamp_ relu_ sigmoid_ fill_ masked_fill_
"""
POINTWISE = frozenset(_POINTWISE.split())

RULES: dict[str, Rule] = {
    "linear": computing.linear,
    "layer_norm": computing.layer_norm,
    "rms_norm": computing.layer_norm,
    "normalize": computing.along(2, 1, drops=False),
    "softmax": computing.along(1, None, drops=False),
    "log_softmax": computing.along(1, None, drops=False),
    "mean": computing.along(1, None, drops=True),
    "sum": computing.along(1, None, drops=True),
    "amax": computing.along(1, None, drops=True),
    "amin": computing.along(1, None, drops=True),
    "norm": computing.along(2, None, drops=True),
    "view": shaping.view,
    "reshape": shaping.view,
    "flatten": shaping.view,
    "unflatten": shaping.view,
    "permute": shaping.permute,
    "transpose": shaping.transpose,
    "swapaxes": shaping.transpose,
    "unsqueeze": shaping.unsqueeze,
    "squeeze": shaping.squeeze,
    "chunk": shaping.bundle(2, drops=False, default=0),
    "split": shaping.bundle(2, drops=False, default=0),
    "unbind": shaping.bundle(1, drops=True, default=0),
    "getitem": shaping.getitem,
    "cat": shaping.join(stacked=False),
    "stack": shaping.join(stacked=True),
    "expand": shaping.expand,
    "view_as_complex": shaping.as_pairs,
    "view_as_real": shaping.as_pairs,
    "repeat": shaping.repeat,
    "repeat_interleave": shaping.repeat_interleave,
    "dropout": computing.dropout,
    "packed_attention": computing.rows_of_first,
    "packed_cross_attention": computing.rows_of_first,
}


def transfer(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """Apply the rule of `node`'s operator.

    Args:
        node: a node with at least one token-tagged operand.
        tagged: axes of the token-tagged values seen so far.
        length: the token count L.

    Raises:
        Unsupported: no rule, or the rule says that rows are mixed.
    """
    name = operator_name(node)
    rule = computing.pointwise if name in POINTWISE else RULES.get(name)
    if rule is None:
        raise Unsupported(Reason.UNKNOWN_OPERATOR, node, f"operator {name}")
    result = rule(node, tagged, length)
    _check(node, result.axes, length)
    return result


def _check(node: fx.Node, axes: Axes, length: Size) -> None:
    value = value_of(node)
    if isinstance(value, (tuple, list)):
        return
    shape = shape_of(node)
    if axes.token >= len(shape) or not same(shape[axes.token], length):
        raise Unsupported(Reason.RESHAPED_TOKENS, node, f"shape {list(shape)}")
