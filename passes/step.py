"""What the passes rewrite: a scale step with its blocks outlined, and the record of what each pass did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from .._torch_private import graph_to_read, keep_source
from ..analysis.block_facts import BlockFacts
from ..analysis.reasons import Fallback


@dataclass(frozen=True)
class BlockGraph:
    """A block as a graph of its own, shared by all layers of equal structure.

    Attributes:
        graph: inputs are the hidden state [R, L, C] first, then what the block needs; one output [R, L, C].
        facts: what the analysis found, or None where the block stays dense.
        fallback: why, where `facts` is None.
    """

    graph: fx.GraphModule
    facts: BlockFacts | None
    fallback: Fallback | None = None


@dataclass(frozen=True)
class Site:
    """One layer of the step, or a sublayer where a policy decides for each.

    Attributes:
        layer: 0-based; sublayers count through.
        name: submodule of the step graph that runs it.
        block: its graph.
        inputs: names of the block graph's placeholders, the hidden state first.
    """

    layer: int
    name: str
    block: BlockGraph


@dataclass(frozen=True)
class Step:
    """A scale step: the graph that calls the blocks and the sites, one per layer.

    The submodule of a site is what the passes replace: first the dense block, then gates around it.

    Attributes:
        graph: calls the sites.
        sites: in the order of the layers.
        parts: sites of each layer.
        fallback: why layers were not cut in parts although that was asked for.
    """

    graph: fx.GraphModule
    sites: tuple[Site, ...]
    parts: int = 1
    fallback: Fallback | None = None

    def module(self, site: Site) -> nn.Module:
        """The module that runs `site` now."""
        return self.graph.get_submodule(site.name)

    def with_modules(self, modules: Mapping[str, nn.Module]) -> Step:
        """A copy in which the named sites run other modules."""
        graph = graph_to_read(self.graph, copy_graph(self.graph.graph), "Step")
        for name, module in modules.items():
            graph.add_submodule(name, module)
        return replace(self, graph=graph)


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph that keeps names and metadata."""
    # Constants and the graphs of higher-order operators are attributes of the module that was traced.
    copied = fx.Graph(owning_module=graph.owning_module)
    copies: dict[fx.Node, fx.Node] = {}
    output = copied.output(copied.graph_copy(graph, copies))
    output.meta = dict(graph.output_node().meta)
    for old, new in copies.items():
        keep_source(new, old)
    return copied


@dataclass
class PassRecord:
    """What one pass did to one step.

    Attributes:
        name: the pass.
        modified: whether the step changed.
        sites: layers it rewrote.
        fallbacks: what it left alone, and why.
        milliseconds: time it took.
        before, after: what it was given and what it returned, for dumps and `explain`.
    """

    name: str
    modified: bool = False
    sites: list[int] = field(default_factory=list)
    fallbacks: list[Fallback] = field(default_factory=list)
    milliseconds: float = 0.0
    before: Step | fx.GraphModule | None = field(default=None, repr=False)
    after: Step | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "name": self.name,
            "modified": self.modified,
            "layers": list(self.sites),
            "milliseconds": self.milliseconds,
            "fallbacks": [str(fallback) for fallback in self.fallbacks],
        }


@dataclass(frozen=True)
class PassResult:
    """A pass's answer: the step (the same object where nothing changed) and its record."""

    step: Step
    record: PassRecord
