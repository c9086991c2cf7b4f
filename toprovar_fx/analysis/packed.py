"""Attention on packed rows: whose tokens the rows are, and whether the lengths that part them are equal.

A packed kernel takes the tokens of all batch rows on one axis, [R L, H, E], and cumulative lengths [R + 1].
Where the queries were merged from [R, L, ...] and their lengths are 0, L, 2L, ... R L by how they are
computed, the axis can be parted again without a look at any value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from .._torch_private import parameter_names, registered_name
from ..ops.packed_rows import GROUPED, KEY_STARTS, MOST_KEYS, MOST_QUERIES, QUERY_STARTS, SCALES
from .operators import operator_name
from .progressions import CASTS, progression
from .reasons import Reason, Unsupported
from .shapes import Size, is_tensor, product, same, shape_of, size_of
from .writes import between, memory_of, written

# Operators by name, and which of their results are the attended values.
PACKED = {
    "flash_attn_varlen_func": None,
    "_flash_attn_varlen_forward": 0,
    "varlen_attn": None,
    "_varlen_attn": 0,
}
# Further parameters, and the values under which they have no effect; what has another is refused.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "dropout_p": (0, None),
    "causal": (False,),
    "is_causal": (False,),
    "window_size": (None, (-1, -1)),
    "window_size_left": (-1, None),
    "window_size_right": (-1, None),
    "softcap": (0,),
    "return_softmax": (False,),
    "return_attn_probs": (False,),
    "deterministic": (False,),
    "zero_tensors": (False,),
    GROUPED: (False, True),
}


@dataclass(frozen=True)
class Parted:
    """Rows [R N, H, E] by where they come from: [R, N, H, E] or [R, N, H E], and the casts on the way.

    Attributes:
        source: the value before its rows were merged; `merged` after.
        casts: nodes that act on each element of the merged rows, in order.
        rows, length: R and N.
        heads, width: H and E.
    """

    source: fx.Node
    merged: fx.Node
    casts: tuple[fx.Node, ...]
    rows: Size
    length: Size
    heads: int
    width: int


@dataclass(frozen=True)
class PackedCall:
    """An attention whose queries can be parted.

    Attributes:
        node: the call; `result`: the node that holds the attended values [R L, H, E].
        query: the queries.
        key, value: keys and values [N, H', E]; `parted_keys` where all batch rows have equally many.
        key_starts: cumulative lengths of the keys.
        most_keys: longest of them.
        scale: softmax scale, or None for the kernel's own.
        kernel: the registered name of what is called.
    """

    node: fx.Node
    result: fx.Node
    query: Parted
    key: fx.Node
    value: fx.Node
    parted_keys: tuple[Parted, Parted] | None
    key_starts: fx.Node
    most_keys: object
    scale: float | None
    kernel: str


def read_packed(node: fx.Node) -> PackedCall:
    """Read a call of a packed kernel.

    Raises:
        Unsupported: with what could not be proven.
    """
    kernel = registered_name(node.target)
    if kernel is None:
        raise Unsupported(Reason.PACKED_ROWS, node, "what is called is not a registered operator")
    given: dict[str, object] = {
        **dict(zip(parameter_names(node.target), node.args, strict=False)),
        **node.kwargs,
    }
    names = [name for name in parameter_names(node.target) if name in given]
    query, key, value = (given.get(name) for name in names[:3])
    starts, key_starts = _one_of(given, QUERY_STARTS), _one_of(given, KEY_STARTS)
    operands = (query, key, value, starts, key_starts)
    if not all(is_tensor(operand) for operand in operands):
        raise Unsupported(Reason.PACKED_ROWS, node, "queries, keys, values or lengths are not given")
    assert all(isinstance(operand, fx.Node) for operand in operands)
    _refuse_variants(node, {name: given[name] for name in names[3:]})
    parted = part(query)  # type: ignore[arg-type]
    if parted is None:
        raise Unsupported(Reason.PACKED_ROWS, node, "the queries are not merged from [rows, tokens, ...]")
    if not _are_equal_steps(starts, parted):
        detail = "the cumulative lengths of the queries are not known to be 0, L, 2L, ... R L"
        raise Unsupported(Reason.PACKED_ROWS, node, detail)
    keys, values = part(key), part(value)  # type: ignore[arg-type]
    alike = keys is not None and values is not None and same(keys.length, values.length)
    for rows in (parted, keys, values):
        if rows is not None and memory_of(rows.source) in written(between(node.graph, rows.merged, node)):
            raise Unsupported(
                Reason.PACKED_ROWS, node, "what the rows are merged from is written to afterwards"
            )
    equal = alike and keys is not None and same(keys.rows, parted.rows) and _are_equal_steps(key_starts, keys)
    most_keys = _one_of(given, MOST_KEYS)
    if not equal and size_of(most_keys) is None:
        raise Unsupported(Reason.PACKED_ROWS, node, "the most keys of a row are not a number")
    scale = _one_of(given, SCALES)
    if scale is not None and not isinstance(scale, (int, float)):
        raise Unsupported(Reason.PACKED_ROWS, node, "the softmax scale is not a constant")
    return PackedCall(
        node=node,
        result=_result(node),
        query=parted,
        key=key,  # type: ignore[arg-type]
        value=value,  # type: ignore[arg-type]
        parted_keys=(keys, values) if equal and keys is not None and values is not None else None,
        key_starts=key_starts,  # type: ignore[arg-type]
        most_keys=most_keys,
        scale=None if scale is None else float(scale),
        kernel=kernel,
    )


def part(node: fx.Node) -> Parted | None:
    """Where rows [R N, H, E] were merged from, or None."""
    casts: list[fx.Node] = []
    merged = node
    while operator_name(merged) in CASTS and merged.op in ("call_method", "call_function"):
        casts.insert(0, merged)
        if not merged.args or not isinstance(merged.args[0], fx.Node):
            return None
        merged = merged.args[0]
    source = merged.args[0] if merged.args else None
    if operator_name(merged) not in ("reshape", "view", "flatten") or not isinstance(source, fx.Node):
        return None
    before, after = shape_of(source), shape_of(merged)
    if len(after) != 3 or len(before) not in (3, 4) or not same(after[0], product(before[:2])):
        return None
    if not all(size.is_Integer for size in after[1:]):
        return None
    inner = after[1:] if len(before) == 4 else (product(after[1:]),)
    if not all(same(left, right) for left, right in zip(before[2:], inner, strict=True)):
        return None
    heads, width = map(int, after[1:])
    return Parted(source, merged, tuple(casts), before[0], before[1], heads, width)


def _are_equal_steps(starts: object, parted: Parted) -> bool:
    found = progression(starts)
    return found is not None and same(found[0], parted.rows + 1) and same(found[1], parted.length)


def _refuse_variants(node: fx.Node, given: Mapping[str, object]) -> None:
    known = {*QUERY_STARTS, *KEY_STARTS, *MOST_QUERIES, *MOST_KEYS, *SCALES}
    for name, value in given.items():
        plain = tuple(value) if isinstance(value, list) else value
        if name in known or plain is None or plain in _NEUTRAL.get(name, ()):
            continue
        raise Unsupported(Reason.PACKED_ROWS, node, f"{name}={value}")


def _result(node: fx.Node) -> fx.Node:
    """The node that holds the attended values.

    Raises:
        Unsupported: another result is used too.
    """
    at = PACKED[operator_name(node)]
    if at is None:
        return node
    users = list(node.users)
    if len(users) == 1 and operator_name(users[0]) == "getitem" and users[0].args[1] == at:
        return users[0]
    raise Unsupported(Reason.PACKED_ROWS, node, "more than the attended values is used")


def _one_of(given: Mapping[str, object], names: tuple[str, ...]) -> object:
    return next((given[name] for name in names if name in given), None)
