"""What Inductor's disk cache gives back holds for the same sizes as what was put in."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import fx, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from toprovar_fx._torch_private import SymbolicInputs, compile_with_inductor
from toprovar_fx.input_specs import KEPT, tensor_spec

LENGTH = sympy.Symbol("L", integer=True, positive=True)
CPU = torch.device("cpu")


class Gathered(nn.Module):
    """K is a size of the index alone; Inductor assumes something of it for the softmax over K."""

    def forward(self, x, keep):
        kept = torch.gather(x, 1, keep.unsqueeze(-1).expand(-1, -1, 64))
        scores = F.layer_norm(kept, (64,)) @ kept.transpose(1, 2)
        return (torch.cat([scores.softmax(-1) @ kept, x], 1),)


def test_a_compilation_from_the_cache_assumes_what_it_assumed(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    graph = fx.symbolic_trace(Gathered())
    two = sympy.Integer(2)
    specs = [
        tensor_spec((two, LENGTH, sympy.Integer(64)), torch.float32, CPU),
        tensor_spec((two, KEPT), torch.int64, CPU),
    ]
    hints = {LENGTH: 1024, KEPT: 256}
    found = []
    for outcome in ("fxgraph_cache_miss", "fxgraph_cache_hit"):
        counters.clear()
        inputs = SymbolicInputs(specs, hints)
        compiled = compile_with_inductor(graph, inputs)
        assert counters["inductor"][outcome] == 1, dict(counters["inductor"])
        found.append((compiled, inputs))
    (cold, first), (warm, second) = found
    assert {LENGTH, KEPT} == set(cold.unnamed)
    bounds = [condition for condition in first.conditions() if isinstance(condition, sympy.Le)]
    if not bounds:
        pytest.skip("Inductor assumes nothing of K on this machine")
    assert set(first.conditions()) == set(second.conditions())
    x = torch.randn(2, 300, 64)
    for count in (7, 256):
        keep = torch.randint(0, 300, (2, count))
        sizes = {LENGTH: 300, KEPT: count}
        assert cold.holds((x, keep), sizes) and warm.holds((x, keep), sizes)
        for compiled in (cold, warm):
            (result,) = compiled.at(sizes)(x, keep)
            torch.testing.assert_close(result, graph(x, keep)[0])
    large = torch.randint(0, 300, (2, 5000))
    refused = [compiled.holds((x, large), {LENGTH: 300, KEPT: 5000}) for compiled in (cold, warm)]
    assert refused == [False, False]
