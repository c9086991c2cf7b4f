"""Which memory a graph writes to, as far as nodes may share it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from .._torch_private import is_mutable
from .operators import operator_name, writes_in_place
from .shapes import dtype_of

# What may hand on the memory of its first operand: views, and casts that have nothing to do.
_MAY_SHARE = frozenset(
    [
        "getitem",
        "narrow",
        "select",
        "slice",
        "view",
        "view_as",
        "view_as_complex",
        "view_as_real",
        "reshape_as",
        "ravel",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "transpose",
        "permute",
        "movedim",
        "moveaxis",
        "swapaxes",
        "swapdims",
        "t",
        "mT",
        "expand",
        "expand_as",
        "broadcast_to",
        "chunk",
        "split",
        "tensor_split",
        "unbind",
        "diagonal",
        "unfold",
        "detach",
        "dropout",
        "contiguous",
        "to",
        "type",
        "type_as",
        "float",
        "double",
        "half",
        "bfloat16",
        "int",
        "long",
        "cuda",
        "cpu",
        "getattr",
    ]
)

_CASTS = frozenset({"to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long"})


def memory_of(node: fx.Node) -> fx.Node:
    """The node that made the memory that a value may lie in."""
    while _hands_on(node) and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _hands_on(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    if writes_in_place(node):
        return True
    if operator_name(node) not in _MAY_SHARE:
        return False
    source, own = dtype_of(node.all_input_nodes[0]), dtype_of(node)
    # A cast to another type makes a copy.
    return operator_name(node) not in _CASTS or None in (source, own) or source == own


def written(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The memory that these nodes may write to."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        if operator_name(node) == "setitem" or writes_in_place(node):
            found.update(memory_of(operand) for operand in node.all_input_nodes[:1])
        elif is_mutable(node.target):
            found.update(map(memory_of, node.all_input_nodes))
        target = node.kwargs.get("out")
        if isinstance(target, fx.Node):
            found.add(memory_of(target))
    return found


def is_written(node: fx.Node) -> bool:
    """Whether something writes to the memory that a value may lie in."""
    memory = memory_of(node)
    known, stack = {memory}, [memory]
    while stack:
        for user in stack.pop().users:
            if memory in written([user]):
                return True
            if user not in known and memory_of(user) is memory:
                known.add(user)
                stack.append(user)
    return False


def between(graph: fx.Graph, first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes of a graph behind `first` and before `last`."""
    nodes = list(graph.nodes)
    return nodes[nodes.index(first) + 1 : nodes.index(last)]
