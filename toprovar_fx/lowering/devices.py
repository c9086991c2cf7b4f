"""Which devices a graph's inputs are on."""

from __future__ import annotations

from torch import fx

from ..analysis.graph_sizes import graph_specs
from ..ops.cards import HOPPER, capability


def on_hopper(graph: fx.Graph) -> bool:
    """Whether a graph has inputs on CUDA devices, all of them Hopper cards."""
    devices = {spec.device for spec in graph_specs(graph) if spec.device is not None}
    cards = [device for device in devices if device.type == "cuda"]
    return bool(cards) and all(capability(card) == HOPPER for card in cards)
