"""Lets graphs on a CPU, in any precision, run as they would be rewritten for a Hopper card.

The operators that replace what a card runs faster compute on a CPU what they replace, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import fx

from toprovar_fx.lowering import (
    attentions,
    carried_norms,
    carried_rows,
    residual_forms,
    residuals,
    rotations,
)
from toprovar_fx.lowering.for_device import for_device
from toprovar_fx.lowering.region import Region
from toprovar_fx.lowering.region_calls import RegionCalls

ANY_FLOAT = (torch.bfloat16, torch.float16, torch.float32)


def hand_on_anywhere(patch: pytest.MonkeyPatch) -> None:
    """Let blocks hand on norms and rows on any device."""
    for module in (carried_norms, carried_rows):
        patch.setattr(module, "on_hopper", lambda graph: True)
    patch.setattr(residual_forms, "_in_half_precision_on_cuda", lambda spec: True)


def called_blocks(calls: RegionCalls) -> list[str]:
    """How each block that a graph calls now runs: the end of its name."""
    regions = [calls.region_of(node) for node in calls.graph.nodes]
    names = [region.name for region in regions if region is not None]
    return [name.split(", ")[-1] for name in names if name.startswith("block")]


def rewrite_anywhere(patch: pytest.MonkeyPatch) -> Counter[str]:
    """Let graphs that run as traced be rewritten as well; counts the operators of ours in them by name."""
    hand_on_anywhere(patch)
    for module in (residuals, attentions):
        patch.setattr(module, "on_hopper", lambda graph: True)
    patch.setattr(attentions, "_HALF", ANY_FLOAT)
    patch.setattr(rotations, "KERNEL_DTYPES", ANY_FLOAT)
    patch.setattr(rotations, "_on_cuda", lambda spec: True)
    patch.setattr(rotations, "has_kernel", lambda dtype, width: True)
    found: Counter[str] = Counter()
    known: dict[Region, fx.GraphModule] = {}

    def run(self: Region, *arguments: Any) -> Any:
        if self not in known:
            known[self] = for_device(self.graph)
            targets = [str(node.target) for node in known[self].graph.nodes if node.op == "call_function"]
            found.update(name.split(".")[1] for name in targets if name.startswith("toprovar."))
        return known[self](*arguments)

    patch.setattr(Region, "__call__", run)
    return found
