"""Whether a scale step can be recorded once and replayed for every image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from ..analysis.caches import written_caches
from ..analysis.graph_sizes import spec_of

if TYPE_CHECKING:
    from ..passes.step import Site, Step


def replays_well(step: Step) -> bool:
    """On CUDA, where its caches stay where they are: of others every recording would need a copy."""
    device = spec_of(_calls(step)[step.sites[0].name].all_input_nodes[0]).device
    return device is not None and device.type == "cuda" and caches_stay(step)


def caches_stay(step: Step) -> bool:
    """Whether the blocks write their keys and values to inputs of the step, and nowhere else."""
    calls = _calls(step)
    held = [_held(site, calls[site.name]) for site in step.sites if site.block.facts is not None]
    return all(all(caches) for caches in held) and any(held)


def _calls(step: Step) -> dict[str, fx.Node]:
    """What calls the sites, by their names."""
    return {str(node.target): node for node in step.graph.graph.nodes if node.op == "call_module"}


def _held(site: Site, call: fx.Node) -> list[bool]:
    """Of every cache that a block writes, whether it is an input of the step."""
    graph = site.block.graph.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    written = written_caches(graph)
    return [
        isinstance(given, fx.Node) and given.op == "placeholder"
        for given, node in zip(call.args, inputs, strict=True)
        if node in written
    ]
