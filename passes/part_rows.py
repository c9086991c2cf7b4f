"""Parts the batch rows of packed attention: the tokens get an axis of their own, as everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..analysis.operators import operator_name, writes_in_place
from ..analysis.packed import PACKED, PackedCall, Parted, read_packed
from ..analysis.reasons import PACKED_WHY, Reason, Unsupported
from ..analysis.shapes import same, shape_of, value_of
from ..ops import packed_rows  # noqa: F401 - registers the operators called here
from .step import copy_graph


def with_parted_rows(traced: fx.GraphModule) -> fx.GraphModule:
    """The graph with packed attention [R L, H, E] on [R, L, H, E], computed by the same kernel.

    A call that is not understood stays, with its reason in the node's metadata.

    Args:
        traced: Dynamo's graph (never changed).

    Returns:
        The graph, or `traced` itself where nothing in it is packed.
    """
    if not any(_is_packed(node) for node in traced.graph.nodes):
        return traced
    module = fx.GraphModule(traced, copy_graph(traced.graph))
    for node in [node for node in module.graph.nodes if _is_packed(node)]:
        try:
            _Parting(module.graph, read_packed(node)).run()
        except Unsupported as verdict:
            node.meta[PACKED_WHY] = verdict.fallback.detail
    module.graph.lint()
    return module


def _is_packed(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node) in PACKED


class _Parting:
    def __init__(self, graph: fx.Graph, call: PackedCall) -> None:
        self.graph, self.call = graph, call

    def run(self) -> None:
        """Put the new call in the place of the old one."""
        parted = self._users(self.call.result)
        with self.graph.inserting_before(self.call.node):
            mixed = self._attention()
        for old, make in parted:
            with self.graph.inserting_before(old):
                old.replace_all_uses_with(make(mixed))
        self._erase()

    def _attention(self) -> fx.Node:
        call = self.call
        query = self._parted(call.query)
        value = value_of(query)
        assert isinstance(value, Tensor)
        if call.parted_keys is not None:
            keys = tuple(map(self._parted, call.parted_keys))
            target: Any = torch.ops.toprovar.packed_self_attention.default
            arguments: tuple[Any, ...] = (query, *keys, call.scale, call.kernel)
        else:
            target = torch.ops.toprovar.packed_cross_attention.default
            text = call.key, call.value, call.key_starts, call.most_keys
            arguments = (query, *text, call.scale, call.kernel)
        return self._call("call_function", target, arguments, value.new_empty(value.shape))

    def _parted(self, rows: Parted) -> fx.Node:
        """The rows as [R, N, H, E]."""
        found = rows.source
        value = value_of(found)
        assert isinstance(value, Tensor)
        if value.dim() == 3:
            heads = rows.heads, rows.width
            value = value.unflatten(2, heads)
            found = self._call("call_method", "unflatten", (found, 2, heads), value)
        for cast in rows.casts:
            given = (found, *cast.args[1:])
            after = value_of(cast)
            assert isinstance(after, Tensor)
            value = value.to(after.dtype)
            found = self._call(cast.op, cast.target, given, value, dict(cast.kwargs))
        return found

    def _users(self, packed: fx.Node) -> list[tuple[fx.Node, Callable[[fx.Node], fx.Node]]]:
        """Nodes that part the result again, each with how to make its value of [R, L, H, E].

        Raises:
            Unsupported: something else reads the packed rows.
        """
        rows, length = self.call.query.rows, self.call.query.length
        found: list[tuple[fx.Node, Callable[[fx.Node], fx.Node]]] = []
        for user in packed.users:
            shape = shape_of(user)
            parts = operator_name(user) in ("reshape", "view", "unflatten") and len(shape) in (3, 4)
            if not parts or not same(shape[0], rows) or not same(shape[1], length):
                detail = f"{operator_name(user)} reads the packed result"
                raise Unsupported(Reason.PACKED_ROWS, self.call.node, detail)
            if len(shape) == 4 and not all(map(same, shape[2:], shape_of(packed)[1:])):
                raise Unsupported(
                    Reason.PACKED_ROWS, self.call.node, "heads are split as the rows are parted"
                )
            found.append((user, self._whole if len(shape) == 4 else self._joined_heads))
        return found

    def _whole(self, mixed: fx.Node) -> fx.Node:
        return mixed

    def _joined_heads(self, mixed: fx.Node) -> fx.Node:
        value = value_of(mixed)
        assert isinstance(value, Tensor)
        return self._call("call_method", "flatten", (mixed, 2), value.flatten(2))

    def _call(
        self, op: str, target: Any, given: tuple[Any, ...], value: Tensor, named: dict[str, Any] | None = None
    ) -> fx.Node:
        node = self.graph.create_node(op, target, given, named or {})
        node.meta = {**self.call.node.meta, "example_value": value}
        return node

    def _erase(self) -> None:
        """Erase the old call and what nobody needs without it."""
        waiting, erased = [*self.call.result.users, self.call.result, self.call.node], set()
        while waiting:
            node = waiting.pop(0)
            if node in erased or node.users or node.op in ("placeholder", "output") or _writes(node):
                continue
            waiting.extend(node.all_input_nodes)
            erased.add(node)
            self.graph.erase_node(node)


def _writes(node: fx.Node) -> bool:
    return writes_in_place(node) or operator_name(node) == "setitem"
