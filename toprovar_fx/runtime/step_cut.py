"""Cuts a scale step in two before a block: what it computes first may decide how the rest runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import fx

from .._torch_private import graph_to_read
from ..analysis.shapes import is_tensor, size_of
from ..analysis.writes import memory_of, written
from ..lowering.rest import RegionModule
from .recorded_inputs import Taking, taking

if TYPE_CHECKING:
    from ..passes.step import Step


@dataclass(frozen=True)
class StepCut:
    """A step in two; whoever runs one after the other computes the step.

    Attributes:
        head: the blocks before the cut. It returns the tensors that cross the cut.
        tail: the others. Its last inputs are what the head returned.
        inputs: of either, which of the step's it takes, by position: those that it needs, and all numbers.
        made_by_head: of the step's results, by position, those that the head made: where they are among what
            it returned. The tail returns the others.
    """

    head: Step
    tail: Step
    inputs: tuple[Sequence[int], Sequence[int]]
    made_by_head: Mapping[int, int]

    @cached_property
    def taken(self) -> tuple[Taking, Taking]:
        """What takes the inputs of head and tail out of the step's."""
        return taking(self.inputs[0]), taking(self.inputs[1])

    def results(self, crossing: Sequence[Any], others: Sequence[Any]) -> tuple[Any, ...]:
        """The step's results, from what head and tail returned."""
        count, rest = len(self.made_by_head) + len(others), iter(others)
        made = self.made_by_head
        return tuple(crossing[made[at]] if at in made else next(rest) for at in range(count))


def cut_step(step: Step, layer: int) -> StepCut | None:
    """Cut a step before the block of a layer, or say None where the halves could not be told apart.

    What crosses the cut has memory of its own that the tail does not write to; sizes and views are made anew
    in the tail, of inputs or of what crosses.

    Args:
        step: after the passes, or a tail of it.
        layer: the first of the tail; one of the step's, and not its first.
    """
    nodes = list(step.graph.graph.nodes)
    # What is made between two blocks is made for the second.
    last = next(site.name for site in reversed(step.sites) if site.layer < layer)
    calls = (place for place, node in enumerate(nodes) if node.op == "call_module" and node.target == last)
    at = next(calls) + 1
    holders = [node for node in nodes if node.op == "placeholder"]
    first = [node for node in nodes[:at] if node.op != "placeholder"]
    second = [node for node in nodes[at:] if node.op not in ("placeholder", "output")]
    results = next(node for node in reversed(nodes) if node.op == "output").args[0]
    if not isinstance(results, (tuple, list)) or not all(isinstance(each, fx.Node) for each in results):
        return None
    crossing = _Crossing(first, _writes(step, first))
    asked = [operand for node in second for operand in node.all_input_nodes]
    if not all(crossing.take(node) for node in [*asked, *results]):
        return None
    passed = list(crossing.passed)
    if not _writes(step, second).isdisjoint(passed):
        return None
    made = {place: passed.index(node) for place, node in enumerate(results) if node in crossing.passed}
    others = tuple(node for node in results if node not in crossing.passed)
    again = [node for node in first if node in crossing.again]
    parts = (crossing.left(first), tuple(passed)), ([*again, *second], others)
    inputs = _inputs(holders, *parts[0]), _inputs(holders, *parts[1])
    graphs = [
        _graph(step, [holders[place] for place in own], entering, *part)
        for own, entering, part in zip(inputs, ((), passed), parts, strict=True)
    ]
    before = tuple(site for site in step.sites if site.layer < layer)
    head = replace(step, graph=graphs[0], sites=before)
    tail = replace(step, graph=graphs[1], sites=step.sites[len(before) :])
    return StepCut(head, tail, inputs, made)


class _Crossing:
    """What the tail needs of the nodes before the cut.

    Args:
        nodes: these.
        writes: the memory that they write to.

    Attributes:
        passed: tensors that the head returns.
        again: what the tail makes anew.
    """

    def __init__(self, nodes: Iterable[fx.Node], writes: set[fx.Node]) -> None:
        self._nodes, self._writes = set(nodes), writes
        self.passed: dict[fx.Node, None] = {}
        self.again: set[fx.Node] = set()

    def take(self, node: fx.Node) -> bool:
        """Take a value that the tail needs; False where it cannot have it."""
        if node not in self._nodes or node in self.passed or node in self.again:
            return True
        memory = memory_of(node)
        if memory is node and is_tensor(node) and node.op != "get_attr":
            self.passed[node] = None
            return True
        # A view of what was written since may be a copy from before.
        viewed = memory is not node and memory not in self._writes
        if not viewed and node.op != "get_attr" and size_of(node) is None:
            return False
        self.again.add(node)
        return all(map(self.take, node.all_input_nodes))

    def left(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """Those of the nodes that are not the tail's alone."""
        kept: dict[fx.Node, None] = {}
        for node in reversed(nodes):
            if node not in self.again or any(user in kept for user in node.users):
                kept[node] = None
        return list(reversed(kept))


def _writes(step: Step, nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The memory that nodes of a step write to, in the graphs that they call too."""
    blocks = {site.name: site.block.graph for site in step.sites}
    found = written(nodes)
    for node in nodes:
        if node.op != "call_module":
            continue
        graph = blocks.get(str(node.target), step.graph.get_submodule(str(node.target)))
        if isinstance(graph, RegionModule):
            graph = graph.region.graph
        assert isinstance(graph, fx.GraphModule)
        inputs = [each for each in graph.graph.nodes if each.op == "placeholder"]
        own = written(graph.graph.nodes)
        operands = zip(inputs, node.args, strict=True)
        found.update(
            memory_of(operand)
            for holder, operand in operands
            if holder in own and isinstance(operand, fx.Node)
        )
    return found


def _inputs(
    holders: Sequence[fx.Node], nodes: Sequence[fx.Node], results: Sequence[fx.Node]
) -> Sequence[int]:
    """Which inputs of the step some nodes and results of it need, and its numbers."""
    needed = {operand for node in nodes for operand in node.all_input_nodes} | set(results)
    return [at for at, node in enumerate(holders) if node in needed or size_of(node) is not None]


def _graph(
    step: Step,
    holders: Sequence[fx.Node],
    passed: Sequence[fx.Node],
    nodes: Sequence[fx.Node],
    results: tuple[fx.Node, ...],
) -> fx.GraphModule:
    """A part of the step: its inputs, further ones that stand for `passed`, some nodes, some results."""
    graph = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    for name, node in [
        *((str(node.target), node) for node in holders),
        *((f"crossing_{node.name}", node) for node in passed),
    ]:
        mapped[node] = graph.placeholder(name)
        mapped[node].meta = dict(node.meta)
    for node in nodes:
        mapped[node] = graph.node_copy(node, mapped.__getitem__)
    graph.output(fx.map_arg(results, mapped.__getitem__))
    graph.lint()
    return graph_to_read(step.graph, graph, "StepPart")
