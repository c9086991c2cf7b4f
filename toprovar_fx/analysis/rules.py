"""How each operator carries the token axis: the rules by which rows may be dropped before it.

A rule answers one question: given that an operand has its tokens on some axis, on which axis of the result are
they, and does row i of the result depend on row i of the operands alone? An operator without a rule stops the
rewrite of its block (`Reason.UNKNOWN_OPERATOR`); one that mixes rows stops it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx

from .reasons import Reason, Unsupported
from .shapes import Size, is_tensor, product, same, shape_of, size_of, value_of


@dataclass(frozen=True)
class Axes:
    """Where a value has its batch rows and its tokens (dimensions counted from the front)."""

    batch: int
    token: int

    def shifted(self, by: int) -> Axes:
        """Both axes moved by `by` dimensions."""
        return Axes(self.batch + by, self.token + by)


@dataclass(frozen=True)
class Transfer:
    """What an operator does with token rows.

    Attributes:
        axes: where the result (each element of it, for a bundle such as `chunk`) has its rows.
        tables: untagged operands with one row per token, as (operand, its dimension): they pair row i with
            token i by position and must be gathered with the same index as the tokens.
    """

    axes: Axes
    tables: tuple[tuple[fx.Node, int], ...] = ()


Tagged = Mapping[fx.Node, Axes]
Rule = Callable[[fx.Node, Tagged, Size], Transfer]

POINTWISE = frozenset(
    "add sub rsub mul truediv div neg pow exp log sqrt rsqrt reciprocal abs sigmoid tanh sin cos erf relu relu6 "
    "silu gelu mish softplus leaky_relu elu hardswish clamp clamp_min clamp_max minimum maximum where lerp "
    "to float half bfloat16 double type type_as contiguous clone detach dropout square nan_to_num "
    "iadd imul isub itruediv add_ mul_ sub_ div_ clamp_ relu_ sigmoid_ addcmul fill_ masked_fill eq ne lt le gt ge "
    "logical_and logical_or logical_not".split()
)
IN_PLACE = frozenset("iadd imul isub itruediv".split())


def operator_name(node: fx.Node) -> str:
    """The bare name of the operator that a node calls."""
    if node.op == "call_method":
        return str(node.target)
    name = getattr(node.target, "__name__", str(node.target))
    return name.partition(".")[0]


def writes_in_place(node: fx.Node) -> bool:
    """Whether the node overwrites its first operand."""
    name = operator_name(node)
    return name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))


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
    rule = pointwise if name in POINTWISE else RULES.get(name)
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


def tensor_operands(node: fx.Node) -> list[fx.Node]:
    """Tensor-valued operands in order, nested ones included."""
    return [operand for operand in node.all_input_nodes if is_tensor(operand)]


def pointwise(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """Broadcasting: axes count from the right; an untagged operand with L rows there is a position table."""
    rank = len(shape_of(node))
    found: Axes | None = None
    for operand in tensor_operands(node):
        if operand in tagged:
            axes = tagged[operand].shifted(rank - len(shape_of(operand)))
            if found not in (None, axes):
                raise Unsupported(Reason.TOKEN_MIXING, node, "operands have their tokens on different axes")
            found = axes
    if found is None:
        raise Unsupported(Reason.UNKNOWN_OPERATOR, node, "no token-tagged tensor operand")
    tables = []
    for operand in tensor_operands(node):
        if operand in tagged:
            continue
        shape = shape_of(operand)
        dimension = found.token - (rank - len(shape))
        if dimension >= 0 and shape[dimension] != 1:
            if not same(shape[dimension], length):
                raise Unsupported(Reason.RESHAPED_TOKENS, node, f"operand {operand.name} of shape {list(shape)}")
            tables.append((operand, dimension))
    return Transfer(found, tuple(tables))


def _main(node: fx.Node, tagged: Tagged) -> Axes:
    """Axes of the first operand, the only one that may carry tokens."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node) or first not in tagged:
        raise Unsupported(Reason.UNKNOWN_OPERATOR, node, "tokens enter through another operand than the first")
    if any(operand in tagged for operand in node.all_input_nodes if operand is not first):
        raise Unsupported(Reason.TOKEN_MIXING, node, "two operands carry tokens")
    return tagged[first]


def argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    """An argument given by position or by keyword."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _input_shape(node: fx.Node) -> tuple[Size, ...]:
    first = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(first, fx.Node)
    return shape_of(first)


def _linear(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    axes = _main(node, tagged)
    if axes.token == len(_input_shape(node)) - 1:
        raise Unsupported(Reason.TOKEN_MIXING, node, "the contraction runs over the tokens")
    return Transfer(axes)


def _layer_norm(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    axes = _main(node, tagged)
    normalised = argument(node, 1, "normalized_shape")
    count = len(normalised) if isinstance(normalised, (tuple, list)) else 1
    if axes.token >= len(_input_shape(node)) - count:
        raise Unsupported(Reason.TOKEN_MIXING, node, "the statistics run over the tokens")
    return Transfer(axes)


def _along(position: int, default: object, drops: bool) -> Rule:
    """A reduction or normalisation along given dimensions, which must not hold tokens or batch rows."""

    def rule(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
        axes, rank = _main(node, tagged), len(_input_shape(node))
        wanted = argument(node, position, "dim", default)
        dims = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
        if not all(isinstance(dim, int) for dim in dims):
            raise Unsupported(Reason.TOKEN_MIXING, node, "it reduces over all dimensions")
        places = {int(dim) % rank for dim in dims}  # type: ignore[call-overload]
        if axes.token in places or axes.batch in places:
            raise Unsupported(Reason.TOKEN_MIXING, node, "it reduces over the tokens or the batch rows")
        if not drops or len(shape_of(node)) == rank:
            return Transfer(axes)
        gone = lambda axis: sum(place < axis for place in places)  # noqa: E731
        return Transfer(Axes(axes.batch - gone(axes.batch), axes.token - gone(axes.token)))

    return rule


def _view(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    axes, before, after = _main(node, tagged), _input_shape(node), shape_of(node)

    def place(axis: int) -> int:
        left = product(before[:axis])
        for candidate, size in enumerate(after):
            if same(size, before[axis]) and same(product(after[:candidate]), left):
                return candidate
        raise Unsupported(Reason.RESHAPED_TOKENS, node, f"{list(before)} becomes {list(after)}")

    return Transfer(Axes(place(axes.batch), place(axes.token)))


def _permute(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    axes, rank = _main(node, tagged), len(_input_shape(node))
    order = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    if not order and isinstance(node.kwargs.get("dims"), (tuple, list)):
        order = node.kwargs["dims"]  # type: ignore[assignment]
    places = [int(dim) % rank for dim in order]  # type: ignore[union-attr, arg-type]
    return Transfer(Axes(places.index(axes.batch), places.index(axes.token)))


def _transpose(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    axes, rank = _main(node, tagged), len(_input_shape(node))
    first, second = (int(argument(node, at, f"dim{at - 1}")) % rank for at in (1, 2))  # type: ignore[call-overload]
    swap = {first: second, second: first}
    return Transfer(Axes(swap.get(axes.batch, axes.batch), swap.get(axes.token, axes.token)))


def _unsqueeze(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    axes, rank = _main(node, tagged), len(shape_of(node))
    at = int(argument(node, 1, "dim")) % rank  # type: ignore[call-overload]
    move = lambda axis: axis + (axis >= at)  # noqa: E731
    return Transfer(Axes(move(axes.batch), move(axes.token)))


def _squeeze(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    axes, rank = _main(node, tagged), len(_input_shape(node))
    dim = argument(node, 1, "dim")
    if not isinstance(dim, int):
        raise Unsupported(Reason.RESHAPED_TOKENS, node, "squeeze without a dimension")
    at = dim % rank
    gone = int(len(shape_of(node)) < rank)
    move = lambda axis: axis - (gone if axis > at else 0)  # noqa: E731
    return Transfer(Axes(move(axes.batch), move(axes.token)))


def _bundle(position: int, drops: bool, default: int) -> Rule:
    """`chunk`, `split`, `unbind`: a tuple of slices along a dimension without tokens."""

    def rule(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
        axes, rank = _main(node, tagged), len(_input_shape(node))
        at = int(argument(node, position, "dim", default)) % rank  # type: ignore[call-overload]
        if at in (axes.token, axes.batch):
            raise Unsupported(Reason.TOKEN_MIXING, node, "it cuts the token or the batch axis")
        if not drops:
            return Transfer(axes)
        return Transfer(Axes(axes.batch - (at < axes.batch), axes.token - (at < axes.token)))

    return rule


def _getitem(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    axes = _main(node, tagged)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if isinstance(value_of(source), (tuple, list)):
        return Transfer(axes)
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    rank = len(shape_of(source))
    if Ellipsis in index:
        at = index.index(Ellipsis)
        taken = sum(entry is not None and entry is not Ellipsis for entry in index)
        index = index[:at] + (slice(None),) * (rank - taken) + index[at + 1 :]
    moved: dict[int, int] = {}
    dimension = result = 0
    for entry in index:
        if entry is None:
            result += 1
        elif isinstance(entry, slice):
            if dimension in (axes.token, axes.batch) and entry != slice(None):
                raise Unsupported(Reason.TOKEN_MIXING, node, "it slices the token or the batch axis")
            moved[dimension] = result
            dimension, result = dimension + 1, result + 1
        elif isinstance(entry, int):
            if dimension in (axes.token, axes.batch):
                raise Unsupported(Reason.TOKEN_MIXING, node, "it picks one token or one batch row")
            dimension += 1
        else:
            raise Unsupported(Reason.UNKNOWN_OPERATOR, node, "indexing by a tensor")
    for rest in range(dimension, rank):
        moved[rest] = result + rest - dimension
    return Transfer(Axes(moved[axes.batch], moved[axes.token]))


def _join(stacked: bool) -> Rule:
    """`cat` and `stack` along a dimension without tokens."""

    def rule(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
        parts = argument(node, 0, "tensors")
        assert isinstance(parts, (tuple, list))
        found = {tagged[part] for part in parts if part in tagged}
        if len(found) != 1 or any(part not in tagged for part in parts):
            raise Unsupported(Reason.TOKEN_MIXING, node, "it joins token rows with something else")
        axes, rank = found.pop(), len(shape_of(node))
        at = int(argument(node, 1, "dim", 0)) % rank  # type: ignore[call-overload]
        if stacked:
            move = lambda axis: axis + (axis >= at)  # noqa: E731
            return Transfer(Axes(move(axes.batch), move(axes.token)))
        if at in (axes.token, axes.batch):
            raise Unsupported(Reason.TOKEN_MIXING, node, "it joins along the token or the batch axis")
        return Transfer(axes)

    return rule


def _expand(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    axes = _main(node, tagged)
    return Transfer(axes.shifted(len(shape_of(node)) - len(_input_shape(node))))


RULES: dict[str, Rule] = {
    "linear": _linear,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "normalize": _along(2, 1, drops=False),
    "softmax": _along(1, None, drops=False),
    "log_softmax": _along(1, None, drops=False),
    "mean": _along(1, None, drops=True),
    "sum": _along(1, None, drops=True),
    "amax": _along(1, None, drops=True),
    "amin": _along(1, None, drops=True),
    "norm": _along(2, None, drops=True),
    "view": _view,
    "reshape": _view,
    "flatten": _view,
    "unflatten": _view,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "chunk": _bundle(2, drops=False, default=0),
    "split": _bundle(2, drops=False, default=0),
    "unbind": _bundle(1, drops=True, default=0),
    "getitem": _getitem,
    "cat": _join(stacked=False),
    "stack": _join(stacked=True),
    "expand": _expand,
}


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
