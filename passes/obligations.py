"""What every pass owes the pipeline, checked after each of them.

A pass edits a copy: the step that it was given runs as before. The step that it returns has the same inputs,
outputs and layers; it is the same object exactly if nothing changed; its record names the layers whose module
is another one, and no layer that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..declaration import Pass
from ..errors import ExtensionError
from .step import PassResult, Step


@dataclass(frozen=True)
class StepState:
    """What of a step must not change while a pass reads it."""

    nodes: Sequence[tuple[object, ...]]
    modules: Mapping[str, nn.Module]

    @classmethod
    def of(cls, step: Step) -> StepState:
        """The state now."""
        nodes = [(node, node.target, node.args, dict(node.kwargs)) for node in step.graph.graph.nodes]
        return cls(nodes, dict(step.graph.named_children()))


def check_result(done: Pass[Any, Any], step: Step, before: StepState, result: object) -> None:
    """Check a pass's answer against what it was given.

    Args:
        done: the pass that ran.
        step: what it was given.
        before: the state of `step` before it ran.
        result: what it returned.

    Raises:
        ExtensionError: it broke an obligation; the message names it.
    """

    def require(held: bool, broken: str) -> None:
        if not held:
            raise ExtensionError(f"pass {done.name!r} {broken}")

    if not isinstance(result, PassResult):
        raise ExtensionError(f"pass {done.name!r} returned {type(result).__name__}: expected a PassResult")
    require(StepState.of(step) == before, "changed the step that it was given: expected an edited copy")
    after, record = result.step, result.record
    require(record.name == done.name, f"named its record {record.name!r}: expected its own name")
    require(
        record.modified == (after is not step),
        f"set modified={record.modified}: expected True exactly if it returns another step",
    )
    layers = {site.layer for site in step.sites}
    unknown = sorted(set(record.sites) - layers)
    require(not unknown, f"recorded the layers {unknown}: expected some of 0 to {len(layers) - 1}")
    if after is step:
        require(not record.sites, "recorded rewritten layers and returned the step as it was")
        return
    require(
        [(site.layer, site.name) for site in after.sites] == [(site.layer, site.name) for site in step.sites],
        "changed the list of layers",
    )
    require(_interface(after) == _interface(step), "changed the inputs or outputs of the step")
    after.graph.graph.lint()
    unnamed = [
        site.layer
        for site in step.sites
        if after.module(site) is not step.module(site) and site.layer not in record.sites
    ]
    require(not unnamed, f"rewrote the layers {unnamed} without recording them")


def _interface(step: Step) -> tuple[list[str], int]:
    graph = step.graph.graph
    inputs = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    return inputs, len(graph.output_node().all_input_nodes)
