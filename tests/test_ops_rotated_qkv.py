"""The operator `rotated_qkv`: the model on a CPU; its kernel interpreted, and compiled for Hopper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from toprovar_fx.models.attention import MAX_LOG_SCALE, CachedAttend, SelfAttention
from toprovar_fx.models.rope import angles_of
from toprovar_fx.ops.rotated_qkv import rotated_qkv

from .triton_runs import interpreted, needs_triton


class Remember(CachedAttend):
    """Attention that keeps the queries it was given."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.query = query
        return super().__call__(query, key, value)


def of_model(
    tokens: int, dtype: torch.dtype, device: str = "cpu", heads: int = 2, width: int = 32
) -> tuple[dict[str, Any], Remember]:
    """Arguments of the operator, and what the model's own attention made of the same."""
    channels, rows, start = heads * width, 3, 4
    model = SelfAttention(channels, heads)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        model.scale_mul_1H11.mul_(1.5)
    model.to(device, dtype).requires_grad_(False)
    angle = torch.randn(1, 1, tokens, width // 2, device=device)
    table = torch.stack((angle.cos(), angle.sin()), -1)
    cos, sin = angles = angles_of(table)
    x = torch.randn(rows, tokens, channels, device=device).to(dtype)
    caches = torch.randn(2, rows, heads, tokens + 9, width, device=device).to(dtype)
    attend = Remember(*caches.clone(), start, start + tokens)
    model(x, angles, attend)
    arguments = {
        "qkv": model.mat_qkv(x).view(rows, tokens, 3, heads, width),
        "q_bias": model.q_bias,
        "v_bias": model.v_bias,
        "log_factor": model.scale_mul_1H11,
        "max_log_factor": MAX_LOG_SCALE,
        "cos": cos,
        "sin": sin,
        "keys": caches[0],
        "values": caches[1],
        "start": start,
    }
    return arguments, attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 6])
def test_on_a_cpu_it_is_the_model(tokens, dtype):
    given, attend = of_model(tokens, dtype)
    query = rotated_qkv(**given)
    assert torch.equal(query, attend.query)
    assert torch.equal(given["keys"], attend.keys) and torch.equal(given["values"], attend.values)
    assert query.transpose(1, 2).is_contiguous()


def test_it_keeps_the_rules():
    given, _ = of_model(3, torch.bfloat16)
    torch.library.opcheck(torch.ops.toprovar.rotated_qkv.default, tuple(given.values()))


@needs_triton
def test_the_kernel_interpreted():
    cases = interpreted("interpreted_rotation")
    assert len(cases) >= 9
    for name, case in cases.items():
        # The interpreter cuts off where bfloat16 would be rounded.
        limit = 2**-6 if name == "bfloat16" else 2**-10
        assert case.pop("untouched"), name
        assert all(difference <= limit for difference in case.values()), (name, case)


@needs_triton
@pytest.mark.parametrize("width", [32, 128])
def test_the_kernel_compiles_for_hopper(width):
    from .kernel_compiler import rotation_kernel

    report = rotation_kernel(width)
    assert report["spilled"] == 0
    assert report["registers"] <= 64


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 16, 128), (9, 7, 64), (576, 16, 128)])
def test_the_kernel_computes_the_same(tokens, heads, width, dtype):
    given, attend = of_model(tokens, dtype, "cuda", heads, width)
    query = rotated_qkv(**given)
    pairs = (query, attend.query), (given["keys"], attend.keys), (given["values"], attend.values)
    for found, expected in pairs:
        assert found.shape == expected.shape
        # Sums of other orders: results next to each other, at most.
        bound = torch.finfo(dtype).eps * expected.double().abs().clamp_min(1e-2) * 1.01
        assert ((found.double() - expected.double()).abs() <= bound).all()
    torch.library.opcheck(torch.ops.toprovar.rotated_qkv.default, tuple(given.values()))
