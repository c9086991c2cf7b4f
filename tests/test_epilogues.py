"""Linear layers that activate what they store."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from toprovar_fx.input_specs import tensor_spec
from toprovar_fx.lowering.epilogues import with_epilogues
from toprovar_fx.ops.linear_gelu import linear_gelu

SIZES = {"x": (2, 6, 8), "weight": (16, 8), "bias": (16,)}


def graph_of(function, device="cuda", dtype=torch.bfloat16) -> fx.GraphModule:
    graph = fx.symbolic_trace(function)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            node.meta["toprovar_spec"] = tensor_spec(SIZES[node.target], dtype, torch.device(device))
    return graph


def activated(x, weight, bias):
    return F.gelu(F.linear(x, weight, bias), approximate="tanh") * 2


def called(graph: fx.GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def test_a_linear_layer_takes_its_activation():
    graph = graph_of(activated)
    fused = with_epilogues(graph)
    assert torch.ops.toprovar.linear_gelu.default in called(fused)
    assert not {F.gelu, F.linear} & set(called(fused))
    # The operator computes the same on any device.
    given = [torch.randn(size) for size in SIZES.values()]
    assert torch.equal(fused(*given), graph(*given))


def exact(x, weight, bias):
    return F.gelu(F.linear(x, weight, bias))


def read_twice(x, weight, bias):
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") + y


def without_bias(x, weight, bias):
    return F.gelu(F.linear(x, weight), approximate="tanh") + bias


def computed_weight(x, weight, bias):
    return F.gelu(F.linear(x, weight * 2, bias), approximate="tanh")


@pytest.mark.parametrize("function", [exact, read_twice, without_bias, computed_weight])
def test_what_the_library_cannot_compute_stays(function):
    graph = graph_of(function)
    assert with_epilogues(graph) is graph


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.bfloat16), ("cuda", torch.float32)])
def test_other_devices_and_types_stay(device, dtype):
    graph = graph_of(activated, device, dtype)
    assert with_epilogues(graph) is graph


def test_autocast_keeps_the_layers_that_it_knows():
    graph = graph_of(activated)
    # A context manager would not switch it on without a device.
    torch.set_autocast_enabled("cuda", True)
    try:
        outside = with_epilogues(graph)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert outside is graph
    assert with_epilogues(graph) is not graph
    inside = graph_of(activated)
    first = next(node for node in inside.graph.nodes if node.op == "call_function")
    with inside.graph.inserting_before(first):
        enter = torch.amp.autocast_mode._enter_autocast
        inside.graph.call_function(enter, ("cuda", torch.bfloat16, True, True))
    assert with_epilogues(inside) is inside


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_the_operator_keeps_the_rules(lead):
    layer = nn.Linear(8, 16)
    x = torch.randn(*lead, 8)
    arguments = (x, layer.weight.detach(), layer.bias.detach())
    assert torch.equal(linear_gelu(*arguments), F.gelu(layer(x), approximate="tanh").detach())
    torch.library.opcheck(torch.ops.toprovar.linear_gelu.default, arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [(2, 1), (2, 9), (2, 576)])
def test_the_library_computes_the_same(dtype, rows):
    torch.manual_seed(0)
    x = torch.randn(*rows, 256, device="cuda", dtype=dtype)
    weight, bias = (
        torch.randn(512, 256, device="cuda", dtype=dtype) / 16,
        torch.randn(512, device="cuda", dtype=dtype),
    )
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    found = linear_gelu(x, weight, bias)
    apart = F.gelu(F.linear(x, weight, bias), approximate="tanh")
    assert found.shape == apart.shape and found.dtype == dtype
    assert (found.double() - exact).abs().max() <= 1.01 * (apart.double() - exact).abs().max() + 1e-6
    torch.library.opcheck(torch.ops.toprovar.linear_gelu.default, (x, weight, bias))
