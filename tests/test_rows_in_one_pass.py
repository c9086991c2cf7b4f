"""Norms on a GPU read their row once, by the choices that our compilations alone are made with."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import fx, nn
from torch._inductor import config
from torch._inductor.choices import InductorChoices
from torch._inductor.virtualized import V
from torch.nn import functional as F

from toprovar_fx._torch_private.choices import rows_in_one_pass
from toprovar_fx.input_specs import KEPT, tensor_spec
from toprovar_fx.lowering.region import Region

pytest.importorskip("triton")
LENGTH = sympy.Symbol("L", integer=True, positive=True)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x, keep):
        return (F.layer_norm(x, (self.width,)),)


class NormOfKeptRows(Norm):
    def forward(self, x, keep):
        kept = torch.gather(x, 1, keep.unsqueeze(-1).expand(-1, -1, self.width))
        return (F.layer_norm(kept, (self.width,)),)


def code_of(norm: Norm) -> str:
    from benchmarks.hopper_stand_in import generated_code

    graph = fx.symbolic_trace(norm)
    cpu, two = torch.device("cpu"), sympy.Integer(2)
    x = tensor_spec((two, LENGTH, sympy.Integer(norm.width)), torch.bfloat16, cpu)
    keep = tensor_spec((two, KEPT), torch.int64, cpu)
    for node, spec in zip(graph.graph.find_nodes(op="placeholder"), (x, keep), strict=True):
        node.meta["toprovar_spec"] = spec
    return generated_code(Region(graph, "inductor"), {"L": 64, str(KEPT): 16})


@pytest.mark.parametrize("norm", [Norm, NormOfKeptRows])
@pytest.mark.parametrize("width, one_pass", [(512, True), (2048, True), (3584, True), (8192, False)])
def test_norms_up_to_the_widest_row_are_one_pass(norm, width, one_pass):
    code = code_of(norm(width))
    assert ("triton_heuristics.persistent_reduction(" in code) == one_pass
    assert ("triton_heuristics.reduction(" in code) != one_pass


def test_the_choices_hold_for_our_compilations_alone():
    before = type(V.choices)
    with rows_in_one_pass() as settings:
        assert type(V.choices) is settings["inductor_choices_class"] is not before
        # Inductor's disk cache tells compilations apart by this.
        assert settings["inductor_choices_class"]().uuid() == V.choices.uuid()
    assert type(V.choices) is before


def test_choices_of_the_user_stay():
    class Theirs(InductorChoices):
        pass

    theirs = V.set_choices_handler(Theirs())
    with config.patch(inductor_choices_class=Theirs), theirs, rows_in_one_pass() as settings:
        assert settings == {}
        assert type(V.choices) is Theirs
