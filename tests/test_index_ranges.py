"""Which index tensors are known to be consecutive numbers: only those are slices in other words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from toprovar_fx.analysis.index_ranges import index_range
from toprovar_fx.analysis.shapes import size_of


def counted(make) -> tuple[int, int] | None:
    """First value and axis of what a function makes of a tensor [2, 8], as its traced graph tells."""
    graphs: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, inputs: object):
        graphs.append(gm)
        return gm.forward

    torch.compiler.reset()
    torch.compile(make, backend=backend, fullgraph=True, dynamic=False)(torch.zeros(2, 8))
    (index,) = graphs[0].graph.output_node().all_input_nodes
    found = index_range(index)
    return None if found is None else (sum(int(size_of(term)) for term in found.start), found.axis)


KNOWN = [
    (lambda x: torch.arange(8), (0, 0)),
    (lambda x: torch.arange(3, 9), (3, 0)),
    (lambda x: torch.arange(start=3, end=9), (3, 0)),
    (lambda x: 2 + torch.arange(5) + 4, (6, 0)),
    (lambda x: torch.arange(9)[2:], (2, 0)),
    (lambda x: torch.arange(9)[:5].to(torch.int64).contiguous(), (0, 0)),
    (lambda x: torch.arange(4)[None, :, None], (0, 1)),
    (lambda x: torch.arange(4).unsqueeze(0), (0, 1)),
    (lambda x: torch.arange(4).unsqueeze(-1), (0, 0)),
    (lambda x: torch.arange(4).view(1, 4, 1).expand(2, 4, 3), (0, 1)),
    (lambda x: torch.arange(8).expand_as(x), (0, 1)),
    (lambda x: torch.arange(4)[:, None].reshape(1, 1, 4), (0, 2)),
]
UNKNOWN = [
    lambda x: torch.arange(0, 8, 2),
    lambda x: torch.arange(8, dtype=torch.int64) * 2,
    lambda x: torch.arange(9)[-3:],
    lambda x: torch.arange(9)[::2],
    lambda x: torch.arange(4).view(2, 2),
    lambda x: torch.arange(4)[:, None].expand(4, 3).reshape(12),
    lambda x: torch.arange(4)[:, None].expand(4, 3)[0],
    lambda x: torch.arange(4).flip(0),
    lambda x: torch.arange(4) + torch.arange(4),
    lambda x: torch.add(torch.arange(4), 1, alpha=2),
    lambda x: x[0].long(),
    lambda x: torch.arange(4)[torch.tensor([1, 0])],
]


@pytest.mark.parametrize(("make", "expected"), KNOWN)
def test_numbers_that_count_up(make, expected):
    start, axis = expected
    values: Tensor = make(torch.zeros(2, 8))
    shape = [1] * values.dim()
    shape[axis] = values.shape[axis]
    assert torch.equal(values, torch.arange(start, start + shape[axis]).view(shape).expand_as(values))
    assert counted(make) == expected


@pytest.mark.parametrize("make", UNKNOWN)
def test_others_may_be_anything(make):
    assert counted(make) is None
