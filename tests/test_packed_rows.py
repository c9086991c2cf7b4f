"""Packed attention: what is proven of its rows and lengths, and that nothing else is parted."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import fx

from toprovar_fx.analysis.graph_sizes import traced_sizes
from toprovar_fx.analysis.progressions import progression
from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.flops import flop_counter

from .models import odd_packed, stand_ins
from .models.odd import OddSubject
from .models.refused import PACKED_ROWS
from .models.subjects import generate, identical

PRUNING = {
    "preset": "criterion",
    "lowering": "eager",
    "keep": {-2: 0.5, -1: 0.5},
    "entropy_source": "previous_scale",
    "protected_layers_first": 0,
    "protected_layers_last": 0,
}


@pytest.fixture(autouse=True)
def _traced_anew():
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:toprovar. this generation ran without a prunable graph:RuntimeWarning")
@pytest.mark.parametrize(("kind", "detail"), PACKED_ROWS.items(), ids=[kind.__name__ for kind in PACKED_ROWS])
def test_what_is_not_proven_stays_dense_and_says_what(kind, detail):
    subject = OddSubject(kind)
    expected = generate(subject, subject.model)
    outcome = generate(subject, torch.compile(subject.model, backend="toprovar", options=PRUNING))
    assert identical(outcome.logits, expected.logits)
    fallbacks = outcome.controller.ledger.fallbacks
    assert {why.reason for why in fallbacks} == {Reason.PACKED_ROWS}
    assert all(detail in why.detail for why in fallbacks), [why.detail for why in fallbacks]


def test_the_same_without_the_fault_is_pruned():
    subject = OddSubject(odd_packed.Packed)
    outcome = generate(subject, torch.compile(subject.model, backend="toprovar", options=PRUNING))
    assert not outcome.controller.ledger.fallbacks and outcome.arms(5) == ["pruned", "pruned"]


def traced(function, *inputs) -> fx.Node:
    """What a function returns, as Dynamo traces it."""
    found: list[fx.GraphModule] = []

    def keep(graph, _):
        found.append(graph)
        return graph.forward

    torch.compiler.reset()
    torch.compile(function, backend=keep, fullgraph=True, dynamic=True)(*inputs)
    (result,) = found[0].graph.output_node().args[0]
    return result


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: torch.arange(0, (x.shape[0] + 1) * x.shape[1], x.shape[1]), "(r + 1, l)"),
        (lambda x: torch.arange(0, x.shape[0] * x.shape[1] + 1, step=x.shape[1]), "(r + 1, l)"),
        (lambda x: torch.arange(start=0, end=3 * x.shape[1], step=x.shape[1]), "(3, l)"),
        (lambda x: torch.arange(x.shape[0] + 1).to(torch.int32) * x.shape[1], "(r + 1, l)"),
        (lambda x: (2 * torch.arange(x.shape[0])).int() * x.shape[1], "(r, 2*l)"),
        (lambda x: torch.arange(x.shape[0] + 1), "(r + 1, 1)"),
        (
            lambda x: torch.nn.functional.pad(torch.full((x.shape[0],), x.shape[1]).cumsum(0), (1, 0)),
            "(r + 1, l)",
        ),
        (lambda x: torch.arange(1, x.shape[0] + 1), "None"),
        (lambda x: torch.arange(0, x.shape[0] * x.shape[1] + 2, x.shape[1]), "None"),
        (lambda x: torch.arange(x.shape[0] + 1) * x.sum(), "None"),
        (lambda x: torch.arange(x.shape[0] + 1) + x.shape[1], "None"),
        (lambda x: torch.nn.functional.pad(torch.full((x.shape[0],), 2).cumsum(0), (0, 1)), "None"),
        (lambda x: torch.arange(x.shape[0] + 1).add_(1) * 2, "None"),
        (lambda x: (torch.arange(x.shape[0] + 1) * x.shape[1]).half().int(), "None"),
        (lambda x: (torch.arange(x.shape[0] + 1) * x.shape[1]).to(torch.int8).to(torch.int32), "None"),
        (lambda x: torch.arange(x.shape[0] + 1, dtype=torch.bfloat16) * x.shape[1], "None"),
    ],
    ids=range(16),
)
def test_progressions(function, expected):
    result = traced(function, torch.zeros(3, 7))
    found = progression(result)
    if expected == "None":
        assert found is None
        return
    assert found is not None
    sizes = traced_sizes(result.graph)
    count, step = (int(size.xreplace(sizes)) for size in found)
    assert function(torch.zeros(3, 7)).tolist() == [step * at for at in range(count)]
    names = {symbol: sympy.Symbol({3: "r", 7: "l"}[value]) for symbol, value in sizes.items()}
    assert str(tuple(size.xreplace(names) for size in found)) == expected


def test_flops_are_those_of_plain_attention():
    """Two products over queries and keys of the same row; texts as long as they are."""
    q, k = torch.randn(2, 5, 4, 8), torch.randn(2, 9, 2, 8)
    starts = torch.tensor([0, 9, 18], dtype=torch.int32)
    kernel = "standin::_varlen_attn"
    with flop_counter() as counter:
        torch.ops.toprovar.packed_self_attention(q, k, k, None, kernel)
        own = counter.get_total_flops()
        torch.ops.toprovar.packed_cross_attention(
            q, k.flatten(0, 1), k.flatten(0, 1), starts, 9, None, kernel
        )
    assert own == 4 * 2 * 5 * 9 * 4 * 8 and counter.get_total_flops() == 2 * own


@pytest.mark.parametrize("kernel", ["_varlen_attn", "_flash_attn_varlen_forward"])
def test_the_operators_are_what_torch_expects_of_operators(kernel):
    q, k = torch.randn(2, 5, 4, 8), torch.randn(2, 9, 2, 8)
    starts = torch.tensor([0, 4, 18], dtype=torch.int32)
    packed = k.flatten(0, 1)
    name = f"standin::{kernel}"
    torch.library.opcheck(torch.ops.toprovar.packed_self_attention, (q, k, k, 0.3, name))
    torch.library.opcheck(
        torch.ops.toprovar.packed_cross_attention, (q, packed, packed, starts, 14, 0.3, name)
    )
    found = torch.ops.toprovar.packed_cross_attention(q, packed, packed, starts, 14, 0.3, name)
    for row, (first, last) in enumerate([(0, 4), (4, 18)]):
        keys = packed[None, first:last]
        assert torch.equal(found[row : row + 1], stand_ins._attend(q[row : row + 1], keys, keys, 0.3))
