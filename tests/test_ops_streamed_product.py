"""Products whose weights are read ahead: who computes what, what the kernel is, and on a card."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from toprovar_fx.flops import flop_counter
from toprovar_fx.ops import streamed_product
from toprovar_fx.ops.linear import linear
from toprovar_fx.ops.linear_add import linear_add
from toprovar_fx.ops.linear_gelu import linear_gelu
from toprovar_fx.ops.streamed_product import (
    OUTPUTS,
    Plan,
    blocks_for,
    plan_for,
    streamed_linear,
    streamed_sums,
    takes,
    weights_stay,
)

from .triton_runs import needs_triton

# Of the layers of Infinity-2B and 8B, and one that deals out unevenly.
SHAPES = [
    *((6144, 2048), (2048, 2048), (8192, 2048), (2048, 8192)),
    *((10752, 3584), (3584, 3584), (14336, 3584), (3584, 14336), (2112, 2304)),
]
ROWS = [1, 2, 8, 12, 18, 24, 32]


def emulated(x: Tensor, weight: Tensor, plan: Plan, whole: bool) -> Tensor:
    """What the kernel writes, program by program; NaN where it writes nothing."""
    outputs, inputs = weight.shape
    channels = inputs // plan.blocks
    out = torch.full((1 if whole else plan.parts, len(x), outputs), torch.nan, dtype=torch.float64)
    for program in range(plan.programs):
        unit, end = program * plan.share, min((program + 1) * plan.share, plan.units)
        while unit < end:
            tile = unit // plan.blocks
            stop = min((tile + 1) * plan.blocks, end)
            at = slice(tile * OUTPUTS, (tile + 1) * OUTPUTS)
            own = slice((unit - tile * plan.blocks) * channels, (stop - tile * plan.blocks) * channels)
            slot = 0 if whole else program - tile * plan.blocks // plan.share
            assert out[slot, :, at].isnan().all(), "written twice"
            out[slot, :, at] = x[:, own] @ weight[at, own].t()
            if not whole and stop == (tile + 1) * plan.blocks:
                out[slot + 1 :, :, at] = 0
            assert not whole or (unit, stop) == (tile * plan.blocks, (tile + 1) * plan.blocks)
            unit = stop
    return out


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("rows", [8, 32])
def test_every_block_has_one_program(rows: int, outputs: int, inputs: int, whole: bool) -> None:
    channels = blocks_for(rows).channels
    plan = plan_for(outputs, inputs, channels, whole)
    assert plan.programs <= streamed_product.PROGRAMS
    # One channel of each block is enough to see who computes it.
    weight = torch.randn(outputs, inputs // channels, dtype=torch.float64)
    x = torch.randn(2, inputs // channels, dtype=torch.float64)
    torch.testing.assert_close(emulated(x, weight, plan, whole).sum(0), x @ weight.t())


@pytest.mark.parametrize("rows", range(1, 33))
def test_blocks_hold_all_rows(rows: int) -> None:
    blocks = blocks_for(rows)
    assert rows <= blocks.box * blocks.boxes <= blocks.rows
    assert blocks.box * blocks.boxes - rows < 8
    assert blocks.stages * blocks.channels * (blocks.rows + OUTPUTS) * 2 <= 226 * 2**10


def given(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Parameter]:
    weight = torch.empty(outputs, inputs, dtype=dtype, device="meta")
    return torch.empty(rows, inputs, dtype=dtype, device="meta"), Parameter(weight)


def test_where_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = given(8, 2048, 2048)
    assert not takes(x, weight, whole=False)
    for name, value in (("capability", (9, 0)), ("has_triton", True), ("_has_gluon", True)):
        monkeypatch.setattr(streamed_product, name, lambda *_, value=value: value)
    assert takes(x, weight, whole=False) and takes(x, weight, whole=True)
    assert takes(*given(32, 3584, 14336), whole=False) and not takes(*given(33, 3584, 14336), whole=False)
    assert not takes(*given(0, 2048, 2048), whole=True)
    assert not takes(*given(8, 1024, 2048), whole=True) and not takes(*given(8, 2048, 2176), whole=True)
    assert not takes(*given(8, 2048, 2048, torch.float32), whole=True)
    assert not takes(x.float(), weight, whole=True)
    # Another kernel may have made it just before.
    assert not takes(x, weight.detach(), whole=True)
    assert not takes(x, Parameter(weight.t()), whole=True)
    # Each of 128 tiles has a program of its own: nothing would be left to add up.
    assert not takes(*given(8, 8192, 2048), whole=False)


def test_without_a_card_it_is_the_layer() -> None:
    x, weight = torch.randn(2, 3, 24), torch.randn(16, 24)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    torch.library.opcheck(torch.ops.toprovar.linear.default, (x, weight))
    with flop_counter() as counter:
        linear(x, weight)
    assert counter.get_total_flops() == 2 * 6 * 24 * 16


@needs_triton
@pytest.mark.parametrize(("whole", "gelu"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("rows", [2, 12, 18, 32])
def test_the_kernel_compiles_for_hopper(rows: int, whole: bool, gelu: bool) -> None:
    from .kernel_compiler import product_kernel

    report = product_kernel(blocks_for(rows), whole, gelu)
    assert report["spilled"] == 0
    assert not report["serialized"]
    assert report["shared"] <= 227 * 2**10
    # A weight comes in before the wait.
    assert report["ptx"].index("cp.async.bulk.tensor") < report["ptx"].index("griddepcontrol.wait")


# On a card


def random(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Parameter, Tensor]:
    weight = (torch.randn(outputs, inputs, device="cuda") * inputs**-0.5).to(dtype)
    x = torch.randn(rows, inputs, device="cuda").to(dtype)
    return x, Parameter(weight, requires_grad=False), torch.randn(outputs, device="cuda").to(dtype)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_products_on_a_card(outputs: int, inputs: int, rows: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(rows, outputs, inputs, dtype)
    expected = F.linear(x.double(), weight.double())
    rounding = torch.finfo(dtype).eps
    sums = streamed_sums(x, weight)
    assert off(sums.sum(0), expected) <= 1e-4
    assert off(streamed_linear(x, weight, None), expected) <= 4 * rounding
    assert off(streamed_linear(x, weight, bias), expected + bias) <= 6 * rounding
    activated = F.gelu(expected + bias, approximate="tanh")
    assert off(streamed_linear(x, weight, bias, gelu=True), activated) <= 6 * rounding


@pytest.mark.gpu
@pytest.mark.parametrize("width", [2048, 3584])
@pytest.mark.parametrize("rows", [2, 18, 32])
def test_a_chain_recorded_is_the_chain_run(rows: int, width: int) -> None:
    """Kernels that start before those before them have ended, whose memory is used again and again."""
    shapes = (3 * width, width), (4 * width, width), (width, 4 * width)
    layers = [[random(rows, *shape, torch.bfloat16)[1:] for shape in shapes] for _ in range(4)]
    start = torch.randn(1, rows, width, device="cuda").bfloat16()

    def run(x: Tensor) -> Tensor:
        for (qkv, _), (first, bias), (second, _) in layers:
            whole = linear(x, qkv)
            x = linear_add(linear_gelu(x, first, bias), second, None, whole[..., :width] * 0.5, [])
        return x

    expected = run(start)
    assert all(takes(start[0], layer[0][0], whole=True) for layer in layers)
    graph, given = torch.cuda.CUDAGraph(), start.clone()
    with weights_stay(), torch.cuda.graph(graph):
        found = run(given)
    for _ in range(20):
        graph.replay()
        assert torch.equal(found, expected)


@pytest.mark.gpu
def test_a_weight_that_was_just_written() -> None:
    x, weight, _ = random(8, 8192, 8192, torch.bfloat16)
    other = random(8, 8192, 8192, torch.bfloat16)[1]
    expected = streamed_linear(x, other, None)
    for _ in range(20):
        weight.zero_()
        weight.copy_(other)
        assert torch.equal(streamed_linear(x, weight, None), expected)
