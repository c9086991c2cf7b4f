"""The first scale's tensor is marked: the graph of many tokens need not be asked all its guards about it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from toprovar_fx._torch_private import one_size


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def one_token() -> Tensor:
    return one_size(torch.rand(2, 1, 4), 1)


def test_the_mark_costs_no_graph():
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, example_inputs: list[object]):
        graphs.append(graph)
        return graph.forward

    def double(x: Tensor) -> Tensor:
        return x + x

    compiled = torch.compile(double, backend=keep)
    for image in range(2):
        for given in (one_token(), torch.rand(2, 4, 4), torch.rand(2, 9, 4)):
            assert torch.equal(compiled(given), 2 * given)
        assert len(graphs) == 2, f"image {image}"
    # Who runs the scales by hand, without the mark, gets the same graphs.
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(torch.rand(2, 1, 4))
    compiled(one_size(torch.rand(3, 1, 4), 1))
    compiled(one_size(torch.rand(5, 1, 4), 1))
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(one_size(torch.rand(7, 1, 4), 1))
