"""Whether running a graph twice on the same inputs leaves what running it once does."""

from __future__ import annotations

import operator

from torch import fx

from .._torch_private import is_mutable
from .caches import users_beside, written_caches
from .operators import operator_name, tensor_operands, writes_in_place
from .random_numbers import draws
from .shapes import value_of
from .writes import memory_of

_IN_PLACE = frozenset(
    {
        operator.iadd,
        operator.isub,
        operator.imul,
        operator.itruediv,
        operator.ifloordiv,
        operator.imod,
        operator.ipow,
        operator.imatmul,
        operator.iand,
        operator.ior,
        operator.ixor,
        operator.delitem,
    }
)
# Results in memory of their own, whatever the operands; what is not listed may share its first operand's.
_FRESH = frozenset(
    {
        *("add", "sub", "mul", "truediv", "linear", "matmul", "bmm", "baddbmm", "layer_norm", "rms_norm"),
        *("gelu", "silu", "relu", "sigmoid", "tanh", "exp", "softmax", "normalize", "clone", "cat", "stack"),
        *("scaled_dot_product_attention", "flex_attention", "attention_with_entropy", "select_tokens"),
        *("select_tokens_by_layer", "gather", "scatter"),
    }
)


def obstacle_to_repeating(graph: fx.Graph) -> str:
    """What a graph does that may not be done twice, or "".

    Allowed are writes `input[index] = value` to an input, or a numbered part of one, that nothing has read
    before: as values come from other inputs, or from what was just written, a second run writes the same. So
    are writes in place to values that the graph computed. Random numbers would be others the second time.
    """
    written = written_caches(graph)
    untouched = set(written)
    for holder in written:
        beside = users_beside(holder) if memory_of(holder) is not holder else []
        user = next((user for user in beside if user.op != "output" and operator_name(user) != "size"), None)
        if user is not None:
            return f"{user.name} uses what {holder.name} is a part of"
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if draws(node):
            return f"{operator_name(node)} at {node.name} draws random numbers"
        if operator_name(node) == "setitem" and node.args[0] in written:
            untouched.discard(node.args[0])
        elif _writes(node) and _may_be_input(node):
            return f"{operator_name(node)} at {node.name} writes in place"
        early = next((operand for operand in node.all_input_nodes if operand in untouched), None)
        if early is not None:
            return f"{early.name} is read before it is written"
    return ""


def _writes(node: fx.Node) -> bool:
    mutable = is_mutable(node.target)
    if mutable is not None:
        return mutable
    if node.target in _IN_PLACE or "out" in node.kwargs:
        return True
    return writes_in_place(node) or operator_name(node) == "setitem"


def _may_be_input(node: fx.Node) -> bool:
    """Whether what an operator writes to may be memory of an input."""
    open_ends: list[object] = [*node.args[:1]] or [None]
    while open_ends:
        at = open_ends.pop()
        if isinstance(at, (tuple, list)):
            open_ends.extend(at)
        elif not isinstance(at, fx.Node) or at.op == "placeholder":
            return True
        elif isinstance(value_of(at), (tuple, list)):
            # Several results: each may be a view of another operand, as those of `broadcast_tensors` are.
            open_ends.extend(tensor_operands(at))
        elif at.op not in ("call_function", "call_method") or operator_name(at) not in _FRESH:
            open_ends.append(at.args[0] if at.args else None)
    return False
