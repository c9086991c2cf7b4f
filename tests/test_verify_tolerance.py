"""How far the permuted run may lie from the dense one, by the precisions that a graph computes in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import fx

from toprovar_fx.input_specs import tensor_spec
from toprovar_fx.ops import packed_attention  # noqa: F401 - registers the operator named here
from toprovar_fx.runtime.verify import PermutationCheck

SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


def arm(*inside: torch.dtype, given: torch.dtype = SINGLE, packed: bool = False) -> SimpleNamespace:
    """What the check reads of a pruned graph: its inputs' types, and those of the values in it."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    for dtype in inside:
        node = graph.call_method("to", (node, dtype))
        node.meta["example_value"] = torch.empty(1, dtype=dtype)
    if packed:
        node = graph.call_function(torch.ops.toprovar.packed_attention.default, (node,))
    graph.output(node)
    specs = [tensor_spec((), given, torch.device("cpu"))]
    return SimpleNamespace(region=SimpleNamespace(graph=fx.GraphModule({}, graph), specs=specs))


@pytest.mark.parametrize(
    ("hidden", "pruned", "accepted"),
    [
        (torch.float64, arm(torch.float64, given=torch.float64), 1e-9),
        (torch.float64, arm(SINGLE, given=torch.float64), 1e-4),
        (SINGLE, arm(SINGLE), 1e-4),
        (SINGLE, arm(HALF), 1e-2),
        (SINGLE, arm(SINGLE, BRAIN, SINGLE), 1e-2),
        (SINGLE, arm(SINGLE, given=BRAIN), 1e-2),
        (SINGLE, arm(SINGLE, packed=True), 1e-2),
        (HALF, arm(HALF, given=HALF), 2e-2),
        (BRAIN, arm(SINGLE, given=BRAIN), 6e-2),
    ],
)
def test_the_least_precise_part_decides(hidden, pruned, accepted):
    check = PermutationCheck("once")
    assert check.tolerance(torch.empty(1, dtype=hidden), pruned) == accepted
    with torch.autocast("cpu", dtype=BRAIN):
        assert check.tolerance(torch.empty(1, dtype=hidden), pruned) == max(accepted, 6e-2)
