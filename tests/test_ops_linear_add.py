"""A linear layer, its residual and the norm that follows: by operators, by the kernel, in parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from toprovar_fx.flops import flop_counter
from toprovar_fx.ops.linear_add import linear_add, linear_add_norm, linear_add_rows
from toprovar_fx.ops.linear_gelu import linear_gelu
from toprovar_fx.ops.projected_attention import projected_attention
from toprovar_fx.ops.split_product import parts_for, sums_of_parts

from .triton_runs import interpreted, needs_triton

EPS = 1e-6


def operands(tokens: int, inputs: int, outputs: int, device: str = "cpu") -> tuple[Tensor, ...]:
    """Inputs, weight, bias, residual, and modulations of all blocks and of two rows, in half precision."""

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, device=device)).bfloat16()

    weight = random(outputs, inputs, scale=inputs**-0.5)
    modulations = random(1, 1, 6, outputs, scale=0.3), random(2, 1, 6, outputs, scale=0.3)
    return random(2, tokens, inputs), weight, random(outputs), random(2, tokens, outputs), *modulations


def addends(every: Tensor, own: Tensor, at: int) -> list[Tensor]:
    return [every[:, :, at], own[:, :, at]]


def in_float64(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, every: Tensor, own: Tensor
) -> tuple[Tensor, Tensor]:
    """What the first two operators return, the norm of the rounded sum as the kernel's."""
    x, weight, bias, every, own = (each.double() for each in (x, weight, bias, every, own))
    gate, _, scale, _, shift, _ = (every + own).unbind(2)
    added = residual.double() + F.linear(x, weight, bias) * gate
    rounded = added.to(residual.dtype).double()
    return added, F.layer_norm(rounded, rounded.shape[-1:], eps=EPS) * (1 + scale) + shift


def off(found: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the values where they are large."""
    return float(((found.double() - expected).abs() / (1 + expected.abs())).max())


def test_without_a_card_they_are_the_model() -> None:
    x, weight, bias, residual, every, own = operands(5, 24, 16)
    gate, gamma, scale, _, shift, _ = (every + own).unbind(2)
    expected = residual + F.linear(x, weight, bias) * gate
    given = x, weight, bias, residual, addends(every, own, 0)
    assert torch.equal(linear_add(*given), expected)
    added, normed = linear_add_norm(*given, addends(every, own, 2), addends(every, own, 4), True, EPS)
    assert torch.equal(added, expected)
    assert torch.equal(normed, F.layer_norm(expected, (16,), eps=EPS) * (1 + scale) + shift)
    affine = linear_add_norm(x, weight, None, residual, [], [bias], [bias], False, EPS)
    assert torch.equal(affine[0], residual + F.linear(x, weight))
    assert torch.equal(affine[1], F.layer_norm(affine[0], (16,), bias, bias, EPS))
    assert torch.equal(
        linear_add(x, weight, bias, residual, [gamma]), residual + F.linear(x, weight, bias) * gamma
    )


def test_rows_of_a_state() -> None:
    x, weight, bias, residual, every, own = operands(3, 24, 16)
    hidden = torch.randn(2, 7, 16).bfloat16()
    keep = torch.tensor([[5, 0, 2], [1, 6, 3]])
    expected = hidden.clone()
    expected[torch.arange(2)[:, None], keep] = residual + F.linear(x, weight, bias) * (every + own)[:, :, 1]
    linear_add_rows(x, weight, bias, residual, addends(every, own, 1), hidden, keep)
    assert torch.equal(hidden, expected)


def test_the_operators_are_sound() -> None:
    """Schemas, fake results and what is written, by torch's own check."""
    x, weight, bias, residual, every, own = operands(3, 24, 16)
    tests = "test_schema", "test_faketensor", "test_aot_dispatch_dynamic"
    given = x, weight, bias, residual, addends(every, own, 0)
    modulation = addends(every, own, 2), addends(every, own, 4), True, EPS
    torch.library.opcheck(linear_add, given, test_utils=tests)
    torch.library.opcheck(linear_add_norm, (*given, *modulation), test_utils=tests)
    hidden, keep = torch.randn(2, 7, 16).bfloat16(), torch.tensor([[5, 0, 2], [1, 6, 3]])
    torch.library.opcheck(linear_add_rows, (*given, hidden, keep), test_utils=tests)
    k = torch.randn(2, 4, 9, 4).bfloat16()
    torch.library.opcheck(projected_attention, (x, weight, bias, 2, 3, 4, k, k, 0.5), test_utils=tests)


def test_queries_of_an_attention() -> None:
    x, weight, bias, *_ = operands(5, 24, 16)
    k, v = torch.randn(2, 2, 4, 9, 4).bfloat16()
    queries = F.linear(x, weight, bias).view(2, 5, 4, 4).transpose(1, 2)
    found = projected_attention(x, weight, bias, 2, 5, 4, k, v, 0.3)
    assert torch.equal(found, F.scaled_dot_product_attention(queries, k, v, scale=0.3))
    assert found.transpose(1, 2).is_contiguous()


def flops_of(call: Callable[[], object]) -> int:
    with flop_counter() as counter:
        call()
    return counter.get_total_flops()


def test_flops_are_those_of_the_operators() -> None:
    x, weight, bias, residual, *_ = operands(3, 24, 16)
    linear = flops_of(lambda: F.linear(x, weight, bias))
    hidden, keep = torch.randn(2, 7, 16).bfloat16(), torch.tensor([[5, 0, 2], [1, 6, 3]])
    given = x, weight, bias, residual, [bias]
    assert linear == 2 * 6 * 24 * 16
    assert flops_of(lambda: linear_add(*given)) == linear
    assert flops_of(lambda: linear_add_norm(*given, [bias], [bias], True, EPS)) == linear
    assert flops_of(lambda: linear_add_rows(*given, hidden, keep)) == linear
    assert flops_of(lambda: linear_gelu(x, weight, bias)) == linear
    k = torch.randn(2, 4, 9, 4).bfloat16()
    attended = linear + 4 * 2 * 4 * 3 * 9 * 4
    assert flops_of(lambda: projected_attention(x, weight, bias, 2, 3, 4, k, k, 0.5)) == attended


@needs_triton
def test_the_kernel_interpreted() -> None:
    found = interpreted("interpreted_add_norm")
    assert len(found) >= 24
    for name, case in found.items():
        assert max(case["error"], case["norm"]) <= 6e-4, name
        assert case["rest is as it was"], name


@needs_triton
@pytest.mark.parametrize("width", [2048, 3584])
@pytest.mark.parametrize("rows", [2, 128, 1152])
@pytest.mark.parametrize("parts", [1, 4])
def test_the_kernel_compiles_for_hopper(width: int, rows: int, parts: int) -> None:
    from toprovar_fx.ops.triton_add_norm import rows_for, warps_for

    from .kernel_compiler import add_norm_kernel

    report = add_norm_kernel(width, rows_for(rows, width), parts, warps_for(rows))
    assert report["spilled"] == 0
    # What is read has whole vectors, the sums of every part as well.
    loads = [line for line in report["ptx"].splitlines() if "ld.global" in line]
    assert loads
    assert all(".v" in line or "keep" in line or ".b64" in line for line in loads)


def test_parts_are_for_few_rows_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(rows: int, outputs: int, inputs: int) -> int:
        return parts_for(rows, torch.empty(outputs, inputs, device="meta"))

    assert parts(8, 2048, 8192) == 1
    monkeypatch.setattr("toprovar_fx.ops.split_product.capability", lambda device: (9, 0))
    # Of an Infinity-2B: the second of the MLP and the square ones; of an 8B; of a small model.
    assert [parts(rows, 2048, 8192) for rows in (2, 288, 512, 1152)] == [4, 4, 2, 1]
    assert [parts(rows, 2048, 2048) for rows in (2, 128, 160, 288)] == [4, 4, 2, 1]
    assert [parts(rows, 3584, 14336) for rows in (2, 230, 512)] == [2, 2, 1]
    assert [parts(rows, 3584, 3584) for rows in (2, 72, 160, 230, 288)] == [2, 1, 1, 2, 1]
    assert parts(8, 6144, 2048) == parts(8, 512, 2048) == 1
    assert parts(8, 2048, 8190) == 1


# On a card


@pytest.fixture
def hopper() -> str:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("for compute capability 9.0")
    return "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 36, 80, 300, 700])
@pytest.mark.parametrize("inputs", [2048, 8192])
def test_sums_and_norms_on_a_card(hopper: str, tokens: int, inputs: int) -> None:
    x, weight, bias, residual, every, own = operands(tokens, inputs, 2048, hopper)
    given = x, weight, bias, residual, addends(every, own, 0)
    modulation = addends(every, own, 2), addends(every, own, 4)
    expected, normed = in_float64(x, weight, bias, residual, every, own)
    # Half a unit in the last place, and the product's own where the library rounds it.
    limit = 3 * 2**-8 if parts_for(2 * tokens, weight) == 1 else 2**-8
    assert off(linear_add(*given), expected) <= limit
    sums, found = linear_add_norm(*given, *modulation, True, EPS)
    assert off(sums, expected) <= limit
    # Where the sum was rounded to a neighbour, the norm is that of the neighbour.
    assert off(found, normed) <= 8 * limit
    hidden = torch.full((2, tokens + 9, 2048), 7.0, device=hopper).bfloat16()
    keep = torch.stack([torch.randperm(tokens + 9, device=hopper)[:tokens] for _ in range(2)])
    linear_add_rows(*given, hidden, keep)
    assert torch.equal(hidden[torch.arange(2, device=hopper)[:, None], keep], linear_add(*given))
    assert int((hidden == 7.0).all(-1).sum()) == 2 * 9


@pytest.mark.gpu
def test_what_the_kernel_does_not_take_on_a_card(hopper: str) -> None:
    x, weight, bias, residual, *_ = operands(5, 64, 48, hopper)
    wide = residual.float()
    added = linear_add(x, weight, bias, wide, [])
    assert torch.equal(added, wide + F.linear(x, weight, bias))
    per_token = torch.randn_like(residual)
    found = linear_add(x, weight, bias, residual, [per_token])
    assert torch.equal(found, residual + F.linear(x, weight, bias) * per_token)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 64, 90, 500])
@pytest.mark.parametrize("biased", [False, True])
def test_projected_queries_on_a_card(hopper: str, tokens: int, biased: bool) -> None:
    x, weight, bias, *_ = operands(tokens, 2048, 2048, hopper)
    k, v = torch.randn(2, 2, 16, 128, 128, device=hopper).bfloat16()
    mask = torch.zeros(2, 1, 1, 128, device=hopper).bfloat16()
    mask[0, ..., 51:] = mask[1, ..., 9:] = float("-inf")
    given = bias if biased else None
    found = projected_attention(x, weight, given, 2, tokens, 16, k, v, 0.1, mask)
    queries = F.linear(x.double(), weight.double(), None if given is None else given.double())
    queries = queries.view(2, tokens, 16, 128).transpose(1, 2)
    expected = F.scaled_dot_product_attention(queries, k.double(), v.double(), mask.double(), scale=0.1)
    assert off(found, expected) <= 2e-2
    assert found.transpose(1, 2).is_contiguous()


@pytest.mark.gpu
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_add_up_on_a_card(hopper: str, parts: int) -> None:
    x, weight, *_ = operands(40, 2048, 1024, hopper)
    rows = x.reshape(80, 2048)
    sums = sums_of_parts(rows, weight, parts)
    assert sums.shape == (parts, 80, 1024) and sums.dtype == torch.float32
    torch.testing.assert_close(sums.double().sum(0), rows.double() @ weight.double().T, rtol=1e-5, atol=1e-5)
