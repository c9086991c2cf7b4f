"""Autocast regions: whole inside a block, or the step stays dense."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from toprovar_fx.analysis.contexts import is_context, refuse_split_regions
from toprovar_fx.analysis.reasons import Reason, Unsupported


def traced() -> tuple[fx.Graph, list[fx.Node]]:
    """enter, a sum, exit, a product, and the output."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    enter = graph.call_function(torch.amp.autocast_mode._enter_autocast, ("cpu", None, False, None))
    total = graph.call_function(torch.add, (x, x))
    leave = graph.call_function(torch.amp.autocast_mode._exit_autocast, (enter,))
    scaled = graph.call_function(torch.mul, (total, 2))
    graph.output(scaled)
    return graph, [enter, total, leave, scaled]


def test_enter_and_exit_are_known():
    _, nodes = traced()
    assert [is_context(node) for node in nodes] == [True, False, True, False]


@pytest.mark.parametrize(
    ("blocks", "whole"),
    [
        ([[0, 1, 2]], True),
        ([[0, 1, 2, 3]], True),
        ([[0, 2], [1]], False),
        ([[0, 1], [2]], False),
        ([[0, 2]], False),
    ],
)
def test_a_region_must_be_whole_inside_one_block(blocks, whole):
    graph, nodes = traced()
    members = [[nodes[at] for at in block] for block in blocks]
    if whole:
        refuse_split_regions(graph, members)
        return
    with pytest.raises(Unsupported) as refused:
        refuse_split_regions(graph, members)
    assert refused.value.fallback.reason is Reason.NO_BLOCK


def test_regions_outside_all_blocks_are_refused():
    graph, _ = traced()
    with pytest.raises(Unsupported):
        refuse_split_regions(graph, [])
