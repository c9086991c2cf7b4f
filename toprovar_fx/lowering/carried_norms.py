"""Blocks that are given the norm of what enters and return that of what leaves, for the block that follows.

A block begins with a norm of what the block before it ended with. Compiled apart, the two read and write the
hidden state once more than they would together, and launch a kernel more.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .._torch_private import graph_to_read
from ..analysis.graph_sizes import spec_of
from ..analysis.writes import written
from ..input_specs import InputSpec, tensor_spec
from .devices import on_hopper
from .residual_forms import Norm, norms_of, update_of


@dataclass(frozen=True)
class CarriedNorm:
    """A block in this form.

    Attributes:
        graph: inputs are the block's, the norm of the first `[R, L, C]`, and those of `modulations` for the
            block that follows; returns the hidden state and the norm that begins that block.
        norm: inputs are the hidden state and those of `modulations`; returns the norm that begins the block.
        modulations: positions among the block's inputs.
    """

    graph: fx.GraphModule
    norm: fx.GraphModule
    modulations: tuple[int, ...]


def with_carried_norm(graph: fx.GraphModule) -> CarriedNorm | None:
    """The form of a block's graph in which one operator computes its last sum and the norm of the next block.

    Args:
        graph: its first input is the hidden state `[R, L, C]`, and so is its only result.

    Returns:
        None where the graph is for other devices than Hopper cards, does not begin with a norm that inputs
        modulate, or does not end with a linear layer that is added to a residual.
    """
    holders = list(graph.graph.find_nodes(op="placeholder"))
    last = next(node for node in reversed(graph.graph.nodes) if node.op == "output").args[0]
    if not on_hopper(graph.graph) or not isinstance(last, fx.Node):
        return None
    update, hidden = update_of(last), holders[0]
    norms = [] if update is None else list(norms_of(hidden, update.channels))
    # The norm is of the type of what it is given and modulated by: that of the layer.
    if update is None or len(norms) != 1 or spec_of(hidden).dtype != update.channels.dtype:
        return None
    (norm,) = norms
    given = dict.fromkeys(addend.node for addend in (*norm.scale, *norm.shift))
    if not given.keys() <= set(holders) or {hidden, *given} & written(graph.graph.nodes):
        return None
    modulations = tuple(holders.index(node) for node in given)
    carried, alone = _carried(graph, norm, last, list(given)), _alone(graph, norm, list(given))
    return CarriedNorm(carried, alone, modulations)


def _carried(graph: fx.GraphModule, norm: Norm, last: fx.Node, given: list[fx.Node]) -> fx.GraphModule:
    copied = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    hidden, *_ = graph.graph.nodes
    for holder in graph.graph.find_nodes(op="placeholder"):
        mapped[holder] = copied.node_copy(holder)
    spec = spec_of(hidden)
    assert spec.shape is not None and spec.dtype is not None and spec.device is not None
    normed = placeholder(copied, "normed", tensor_spec(spec.shape, spec.dtype, spec.device))
    following = {node: placeholder(copied, f"next_{node.name}", spec_of(node)) for node in given}
    mapped[norm.result] = normed
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "output") and node not in norm.nodes:
            mapped[node] = copied.node_copy(node, mapped.__getitem__)
    result = mapped[last]
    copied.output((result, copied_with_operands(copied, norm.result, {hidden: result, **following})))
    return graph_to_read(graph, copied)


def _alone(graph: fx.GraphModule, norm: Norm, given: list[fx.Node]) -> fx.GraphModule:
    copied = fx.Graph()
    hidden, *_ = graph.graph.nodes
    mapped = {node: copied.node_copy(node) for node in (hidden, *given)}
    copied.output(copied_with_operands(copied, norm.result, mapped))
    return graph_to_read(graph, copied)


def placeholder(graph: fx.Graph, name: str, spec: InputSpec) -> fx.Node:
    """An input of this spec."""
    holder = graph.placeholder(name)
    holder.meta = {"toprovar_spec": spec}
    return holder


def copied_with_operands(graph: fx.Graph, node: fx.Node, mapped: dict[fx.Node, fx.Node]) -> fx.Node:
    """The copy of a node, made with all that it is computed from, as far as `mapped` has none."""
    if node not in mapped:
        for operand in node.all_input_nodes:
            copied_with_operands(graph, operand, mapped)
        mapped[node] = graph.node_copy(node, mapped.__getitem__)
    return mapped[node]
