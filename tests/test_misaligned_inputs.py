"""Inputs that begin between the addresses that kernels read from fastest: nothing copies them."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, fx, nn

from toprovar_fx.analysis.graph_sizes import spec_of
from toprovar_fx.input_specs import at_sizes
from toprovar_fx.lowering.region import Region


class Turned(nn.Module):
    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + x * sin


def region() -> Region:
    """A graph whose sines are every second number of a table."""
    graph = fx.symbolic_trace(Turned())
    pairs = torch.empty(8, 16, 2)
    values = torch.empty(8, 16), *pairs.unbind(-1)
    for node, value in zip(graph.graph.find_nodes(op="placeholder"), values, strict=True):
        node.meta["example_value"] = value
    return Region(graph, "inductor")


def test_the_spec_tells() -> None:
    assert [spec.misaligned for spec in region().specs] == [False, False, True]
    assert [at_sizes(spec, {}).misaligned for spec in region().specs] == [False, False, True]


def test_rows_of_a_table_that_keep_the_addresses() -> None:
    graph = fx.symbolic_trace(Turned())
    (first, *_) = graph.graph.find_nodes(op="placeholder")
    for offset, misaligned in ((4, False), (2, True)):
        first.meta["example_value"] = torch.empty(64)[offset:]
        assert spec_of(first).misaligned == misaligned


def test_inductor_does_not_count_on_its_address() -> None:
    stand_in = pytest.importorskip(
        "benchmarks.hopper_stand_in", reason="needs Triton, which is for Linux only"
    )
    code = stand_in.generated_code(region(), {})
    (assumed,) = re.findall(r"'configs': \[\{(.*?)\}\]", code)
    # Of the inputs 0, 1 and 2, the output 3 and the number of elements 4; what it counts on it copies to.
    assert re.findall(r"\((\d+),\)", assumed) == ["0", "1", "3", "4"]
    assert "arg2_1 = copy_if_misaligned" not in code


def test_the_result_is_that_of_eager() -> None:
    x, table = torch.randn(8, 16), torch.randn(8, 16, 2)
    cos, sin = table.unbind(-1)
    torch.testing.assert_close(region()(x, cos, sin), Turned()(x, cos, sin))
