"""Which block of a drawn model a site of the compiled step is, read off where its nodes were traced from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx

from toprovar_fx.analysis.blocks import read_step
from toprovar_fx.analysis.reasons import Unsupported
from toprovar_fx.passes.canonical_caches import canonical_caches
from toprovar_fx.passes.trivial_block_masks import without_trivial_block_masks

from .model import STAGES


@dataclass
class Sites:
    """Sites are numbered by the attentions that were found; some of a model's blocks may have none.

    Attributes:
        layers: by site, the model's layer.
        last_stage: by layer, the last of the model's `STAGES` that the compiled block holds.
    """

    layers: dict[int, int] = field(default_factory=dict)
    last_stage: dict[int, str] = field(default_factory=dict)


def sites_of(graphs: Sequence[fx.GraphModule]) -> Sites:
    """What the graphs of one model agree on."""
    found = Sites()
    for module in graphs:
        try:
            blocks = read_step(canonical_caches(without_trivial_block_masks(module).graph)).blocks
        except Unsupported:
            continue
        for block in blocks:
            layer = _layer(block.attention.node)
            assert found.layers.setdefault(block.layer, layer) == layer, "graphs number layers differently"
            stage = _stage(block.exit)
            assert found.last_stage.setdefault(layer, stage) == stage, "graphs end their blocks differently"
    return found


def _layer(node: fx.Node) -> int:
    paths = " ".join(str(path) for path, _ in node.meta["nn_module_stack"].values())
    return int(re.findall(r"blocks\D{1,30}?(\d+)", paths)[0])


def _stage(node: fx.Node) -> str:
    """The stage that the node was traced in."""
    functions = re.findall(r", in (\w+)", node.meta["stack_trace"])
    return [name for name in functions if name in STAGES][-1]
