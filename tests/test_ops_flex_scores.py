"""Scores that FlexAttention hides: the same compiled as eagerly, whatever size a score_mod captures."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import fx

from toprovar_fx.input_specs import InputSpec, tensor_spec
from toprovar_fx.lowering.region import Region
from toprovar_fx.ops.flex_scores import flex_scores

SCALE = 0.3


def biased(score, b, h, i, j, slopes, start):
    return score + slopes[h] * (start + i - j)


def expected(query: torch.Tensor, key: torch.Tensor, slopes: torch.Tensor, start: int) -> torch.Tensor:
    keys = key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    queries, places = torch.arange(query.shape[2]), torch.arange(key.shape[2])
    distance = start + queries[:, None] - places
    return SCALE * query.double() @ keys.transpose(-2, -1) + slopes[:, None, None] * distance


def drawn(length: int, start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    source = torch.Generator().manual_seed(start)
    shapes = (2, 4, length, 6), (2, 2, start + length, 6), (4,)
    query, key, slopes = (torch.randn(shape, generator=source) for shape in shapes)
    return query, key, slopes, start


@pytest.mark.parametrize(("length", "start"), [(1, 0), (5, 3)])
def test_a_matrix_of_changed_scores(length, start):
    query, key, slopes, start = drawn(length, start)
    found = flex_scores(query, key, biased, SCALE, (slopes, start))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected(query, key, slopes, start), rtol=1e-5, atol=1e-5)
    wide = flex_scores(query.double(), key.double(), biased, SCALE, (slopes, start))
    assert wide.dtype == torch.float64


def test_a_captured_size_compiles_as_a_symbol():
    """Decompositions reject an operator of a symbolic size and a batched tensor."""

    def scores(query, key, slopes, start):
        return flex_scores(query, key, biased, SCALE, (slopes, start))

    graph = fx.Graph()
    holders = [graph.placeholder(name) for name in ("query", "key", "slopes", "start")]
    length, start, keys = (sympy.Symbol(n, integer=True, positive=True) for n in ("L", "start", "keys"))
    sizes = (tuple(map(sympy.sympify, shape)) for shape in ((2, 4, length, 6), (2, 2, keys, 6), (4,)))
    for holder, shape in zip(holders, sizes, strict=False):
        holder.meta["toprovar_spec"] = tensor_spec(shape, torch.float32, torch.device("cpu"))
    holders[3].meta["toprovar_spec"] = InputSpec(value=start)
    graph.output(graph.call_function(scores, tuple(holders)))
    region = Region(fx.GraphModule({}, graph), "inductor", {"L": 16, "keys": 32, "start": 16})
    for place in ((5, 3), (9, 12)):
        given = drawn(*place)
        torch.testing.assert_close(region(*given).double(), expected(*given), rtol=1e-5, atol=1e-5)
    assert len(region.compile_seconds) == 1
