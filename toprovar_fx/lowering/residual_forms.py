"""The forms in which a graph adds a linear layer to a residual and normalises the sum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import sympy
import torch
from torch import fx
from torch.nn import functional as F

from ..analysis.graph_sizes import spec_of
from ..analysis.operators import operator_name
from ..analysis.shapes import as_size, dtype_of, value_of
from ..input_specs import InputSpec
from ..ops.linear_add import KERNEL_DTYPES, WIDEST
from .patterns import Call, Hole, match

Shape = tuple[sympy.Expr, ...]
_BUNDLED = Call(
    "getitem", Call("unbind", Call("add", Hole("first"), Hole("second")), Hole("axis")), Hole("at")
)
_DEFAULT_EPS = 1e-5


class Channels(NamedTuple):
    """What a linear layer computes of every token: how many numbers, and of which type."""

    width: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Addend:
    """A modulation `[R or 1, 1, C]` or `[C]`: a node, or what it is at one place of an axis."""

    node: fx.Node
    axis: int | None = None
    at: int = 0

    def built(self, graph: fx.Graph) -> fx.Node:
        """The node of the modulation itself."""
        return (
            self.node if self.axis is None else graph.call_method("select", (self.node, self.axis, self.at))
        )


Addends = tuple[Addend, ...]


@dataclass(frozen=True)
class Update:
    """`residual + (x W^T + bias) * gate`, and the nodes that compute nothing else."""

    residual: fx.Node
    linear: fx.Node
    gate: Addends
    channels: Channels
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Norm:
    """The norm of a sum over its channels, times factors and plus shifts; `result` is its last node."""

    scale: Addends
    shift: Addends
    one: bool
    eps: float
    nodes: tuple[fx.Node, ...]

    @property
    def result(self) -> fx.Node:
        """What others read."""
        return self.nodes[-1]


def update_of(add: fx.Node) -> Update | None:
    """What an addition adds to a residual, if that is a linear layer that nobody else reads, of its type."""
    if not _calls(add, "add", 2) or not all(isinstance(operand, fx.Node) for operand in add.args):
        return None
    first, second = add.args
    for residual, update in ((first, second), (second, first)):
        assert isinstance(residual, fx.Node) and isinstance(update, fx.Node)
        found = _gated(residual, update, add) if len(update.users) == 1 else None
        if found is not None and type_of(add) == found.channels.dtype:
            return found
    return None


def _gated(residual: fx.Node, update: fx.Node, add: fx.Node) -> Update | None:
    channels = _channels_of(update)
    if channels is not None:
        return Update(residual, update, (), channels, (update, add))
    if not _calls(update, "mul", 2):
        return None
    for linear, gate in (update.args, reversed(update.args)):
        if not isinstance(linear, fx.Node) or not isinstance(gate, fx.Node) or len(linear.users) != 1:
            continue
        channels = _channels_of(linear)
        found = () if channels is None else addends_of(gate, channels)
        if channels is not None and found:
            return Update(residual, linear, found, channels, (linear, update, add))
    return None


def norms_of(x: fx.Node, channels: Channels) -> Iterator[Norm]:
    """The norms of `x [R, L, C]` that the operator computes, in order."""
    for node in list(x.users):
        found = _norm_at(node, x, channels)
        if found is not None:
            yield found


def addends_of(node: fx.Node, channels: Channels) -> Addends:
    """A modulation as one addend or two; none if it differs between tokens, or is of another type."""
    width, dtype = channels
    parts = match(_BUNDLED, node, {})
    if parts is not None and isinstance(parts["axis"], int) and isinstance(parts["at"], int):
        shapes = [_without(shape_of(parts[name]), parts["axis"]) for name in ("first", "second")]
        alike = all(type_of(parts[name]) == dtype for name in ("first", "second"))
        if alike and all(_modulates(shape, width) for shape in shapes):
            return tuple(Addend(parts[name], parts["axis"], parts["at"]) for name in ("first", "second"))
    return (Addend(node),) if type_of(node) == dtype and _modulates(shape_of(node), width) else ()


def shape_of(node: object) -> Shape | None:
    """The shape of a node's value, as far as it is known."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "placeholder":
        return spec_of(node).shape
    value = value_of(node)
    return tuple(map(as_size, value.shape)) if isinstance(value, torch.Tensor) else None


def type_of(node: fx.Node) -> torch.dtype | None:
    """The type of a node's value, as far as it is known."""
    return spec_of(node).dtype if node.op == "placeholder" else dtype_of(node)


def _norm_at(node: fx.Node, x: fx.Node, channels: Channels) -> Norm | None:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    if node.op != "call_function" or node.target is not F.layer_norm or len(node.args) > len(names):
        return None
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    eps, shape = given.get("eps", _DEFAULT_EPS), given["normalized_shape"]
    if (
        given["input"] is not x
        or shape not in ((channels.width,), [channels.width])
        or not isinstance(eps, float)
    ):
        return None
    weight, bias = given.get("weight"), given.get("bias")
    if isinstance(weight, fx.Node) and isinstance(bias, fx.Node):
        scale, shift = addends_of(weight, channels), addends_of(bias, channels)
        return Norm(scale, shift, False, eps, (node,)) if scale and shift else None
    return _adaptive(node, channels, eps) if weight is None and bias is None else None


def _adaptive(norm: fx.Node, channels: Channels, eps: float) -> Norm | None:
    """`norm * (1 + scale) + shift`, if nobody else reads what is between."""
    (scaled,) = norm.users if len(norm.users) == 1 else (None,)
    (shifted,) = scaled.users if scaled is not None and len(scaled.users) == 1 else (None,)
    if scaled is None or shifted is None:
        return None
    scale, shift = _other(scaled, "mul", norm), _other(shifted, "add", scaled)
    one = match(Call("add", 1, Hole("scale")), scale, {}) or match(Call("add", Hole("scale"), 1), scale, {})
    if one is None or not isinstance(one["scale"], fx.Node) or not isinstance(shift, fx.Node):
        return None
    scales, shifts = addends_of(one["scale"], channels), addends_of(shift, channels)
    return Norm(scales, shifts, True, eps, (norm, scaled, shifted)) if scales and shifts else None


def _other(node: fx.Node, name: str, operand: fx.Node) -> object:
    """The other operand of a call of two."""
    if not _calls(node, name, 2) or node.args.count(operand) != 1:
        return None
    return node.args[1 - node.args.index(operand)]


def _calls(node: fx.Node, name: str, operands: int) -> bool:
    called = node.op in ("call_function", "call_method") and operator_name(node) == name
    return called and len(node.args) == operands and not node.kwargs


def _channels_of(node: fx.Node) -> Channels | None:
    """Those of a linear layer of three axes whose weights are inputs in half precision on a CUDA device."""
    if (
        node.op != "call_function"
        or node.target is not F.linear
        or node.kwargs
        or len(node.args) not in (2, 3)
    ):
        return None
    weight, bias = (*node.args, None)[1:3]
    shape = shape_of(node)
    if not isinstance(weight, fx.Node) or weight.op != "placeholder" or shape is None or len(shape) != 3:
        return None
    if bias is not None and (not isinstance(bias, fx.Node) or bias.op != "placeholder"):
        return None
    spec = spec_of(weight)
    if not _in_half_precision_on_cuda(spec) or spec.shape is None or len(spec.shape) != 2:
        return None
    width = spec.shape[0]
    if not width.is_Integer or int(width) > WIDEST or spec.dtype is None:
        return None
    return Channels(int(width), spec.dtype)


def _in_half_precision_on_cuda(spec: InputSpec) -> bool:
    return spec.device is not None and spec.device.type == "cuda" and spec.dtype in KERNEL_DTYPES


def _without(shape: Shape | None, axis: int) -> Shape | None:
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    return (*shape[:axis], *shape[axis + 1 :])


def _modulates(shape: Shape | None, width: int) -> bool:
    """Whether what has this shape is the same for all tokens of a batch row."""
    return shape is not None and (shape == (width,) or (len(shape) == 3 and shape[1:] == (1, width)))
