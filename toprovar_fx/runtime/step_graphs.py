"""The graphs of a rewritten step, read off its gates, for the cost model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..cost.generation import LayerGraphs, StepGraphs
from ..lowering.region import Region
from .gates import EntropyTap, Gate
from .token_gates import OwnEntropyGate, TokenGate


def step_graphs(sites: Sequence[tuple[int, nn.Module]], others: Sequence[Region]) -> StepGraphs:
    """Collect the graphs that each layer can run.

    Args:
        sites: layer and the module that runs it; one that is no gate is among `others`.
        others: the graphs outside the layers, one that is called twice twice.
    """
    gates = {layer: module for layer, module in sites if isinstance(module, Gate)}
    return StepGraphs({layer: _layer_graphs(gate) for layer, gate in gates.items()}, others)


def _layer_graphs(gate: Gate) -> LayerGraphs:
    tapped = pruned = pruned_tapped = None
    for module in gate.modules():
        if isinstance(module, EntropyTap):
            tapped = module.tapped.region
        elif isinstance(module, TokenGate):
            pruned = module.pruned.region
            pruned_tapped = None if module.tapped is None else module.tapped.region
        elif isinstance(module, OwnEntropyGate):
            pruned = pruned_tapped = module.selecting.region
    options = gate.options
    keeps_rows = options.pruned_kv == "keep" or (
        options.score == "entropy" and options.entropy_source == "same_layer"
    )
    return LayerGraphs(gate.dense.region, tapped, pruned, pruned_tapped, keeps_rows)
