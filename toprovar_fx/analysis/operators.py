"""What a node calls and with which arguments, however they were given."""

from __future__ import annotations

from types import FunctionType

from torch import fx

from .._torch_private import namespace_of
from .reasons import Reason, Unsupported
from .shapes import Size, is_tensor, same, size_of

_INPLACE_AT = {
    "relu": 1,
    "relu6": 1,
    "silu": 1,
    "mish": 1,
    "hardswish": 1,
    "leaky_relu": 2,
    "elu": 2,
    "dropout": 3,
}
_IN_PLACE = "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift"
IN_PLACE = frozenset(_IN_PLACE.split())
# Namespaces of operators and packages of functions that the rules were written for.
_KNOWN_HOMES = ("aten", "prims", "torch", "toprovar", "toprovar_fx")
# What takes the type and the device of its second operand, and no values.
_LIKE_SECOND = frozenset({"to", "type_as"})


def operator_name(node: fx.Node) -> str:
    """The bare name of the operator that a node calls."""
    if node.op == "call_method":
        return str(node.target)
    name = getattr(node.target, "__name__", str(node.target))
    return name.partition(".")[0]


def refuse_foreign(node: fx.Node) -> None:
    """Refuse an operator or function of somebody else's: its name, `normalize` say, tells nothing about it.

    Attentions of libraries are looked up by their names before (`attention_forms.py`).
    """
    target = node.target
    if node.op != "call_function":
        return
    home = namespace_of(target)
    if isinstance(target, FunctionType):
        home = target.__module__.partition(".")[0]
    if home not in (None, *_KNOWN_HOMES):
        raise Unsupported(Reason.UNKNOWN_OPERATOR, node, f"operator {operator_name(node)} of {home}")


def fetched_graph(node: object) -> fx.GraphModule | None:
    """The graph that a node fetches from its graph's module, as operand of a higher-order operator."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or node.graph.owning_module is None:
        return None
    found = dict(node.graph.owning_module.named_modules()).get(str(node.target))
    return found if isinstance(found, fx.GraphModule) else None


def writes_in_place(node: fx.Node) -> bool:
    """Whether the node overwrites its first operand."""
    name = operator_name(node)
    by_name = name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    # `relu(x, inplace=True)`, `silu(x, True)`, `dropout(x, p, training, True)`.
    return by_name or argument(node, _INPLACE_AT.get(name, len(node.args)), "inplace") is True


def tensor_operands(node: fx.Node) -> list[fx.Node]:
    """Tensor-valued operands in order, nested ones included."""
    return [operand for operand in node.all_input_nodes if is_tensor(operand)]


def value_operands(node: fx.Node) -> list[fx.Node]:
    """Operands whose values count; in `x.type_as(y)` and the like those of `y` do not."""
    if operator_name(node) in _LIKE_SECOND and node.args and isinstance(node.args[0], fx.Node):
        return [node.args[0]]
    return list(node.all_input_nodes)


def argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    """An argument given by position or by keyword."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def dimension(node: fx.Node, position: int, rank: int, name: str = "dim", default: int | None = None) -> int:
    """An argument that names a dimension, counted from the front."""
    value = argument(node, position, name, default)
    if not isinstance(value, int):
        raise Unsupported(Reason.UNKNOWN_OPERATOR, node, f"{name} is not a constant")
    return value % rank


def states_length(node: fx.Node, length: Size) -> bool:
    """Whether `node` is a shape operator that may name the token count among its arguments."""
    return operator_name(node) in {"view", "reshape", "unflatten", "expand"} and any(
        (size := size_of(entry)) is not None and same(size, length) for entry in flat_arguments(node)
    )


def flat_arguments(node: fx.Node) -> list[object]:
    """All arguments of a node, nested tuples and lists flattened."""
    found: list[object] = []

    def visit(value: object) -> None:
        if isinstance(value, (tuple, list)):
            for entry in value:
                visit(entry)
        elif isinstance(value, slice):
            visit((value.start, value.stop, value.step))
        else:
            found.append(value)

    visit(list(node.args) + list(node.kwargs.values()))
    return found


def full_index(index: object, rank: int) -> tuple[object, ...] | None:
    """An index with one entry per dimension, `...` written out; None if it adds dimensions."""
    entries = index if isinstance(index, tuple) else (index,)
    if any(entry is None or isinstance(entry, bool) for entry in entries):
        return None
    if any(entry is Ellipsis for entry in entries):
        at = next(at for at, entry in enumerate(entries) if entry is Ellipsis)
        missing = rank - len(entries) + 1
        entries = entries[:at] + (slice(None),) * missing + entries[at + 1 :]
    return entries + (slice(None),) * (rank - len(entries))


def one_slice(rank: int, axis: int, entry: slice) -> tuple[slice, ...]:
    """The index of `rank` dimensions that is `entry` on one axis and whole on all others."""
    return tuple(entry if at == axis else slice(None) for at in range(rank))


def leading_numbers(entries: tuple[object, ...], shape: tuple[Size, ...]) -> tuple[int, ...]:
    """The numbers at the front of a full index, counted from the start where the size is known."""
    found: list[int] = []
    for entry, size in zip(entries, shape, strict=True):
        if not isinstance(entry, int):
            break
        found.append(entry % int(size) if size.is_Integer else entry)
    return tuple(found)
