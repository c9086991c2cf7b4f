"""The operator `sigma_ratio`: the criterion's function on a CPU; its kernel interpreted, and on a device."""

from __future__ import annotations

import math

import pytest
import torch

from toprovar_fx.criteria import sigma_ratio as of_criterion
from toprovar_fx.ops import sigma_ratio
from toprovar_fx.ops.sigma_ratio import LARGEST_SIDE

from .triton_runs import interpreted, needs_triton


def bound(side: int) -> float:
    """Relative error that the function promises, and fp32 rounding."""
    return 3 * math.log(side) / 2048 + 1e-4


@pytest.mark.parametrize("centre", [False, True])
def test_on_a_cpu_it_is_the_function(centre):
    maps = torch.rand(3, 2, 6, 7)
    assert torch.equal(sigma_ratio(maps, centre), of_criterion(maps, centre))


def test_it_keeps_the_rules():
    torch.library.opcheck(torch.ops.toprovar.sigma_ratio.default, (torch.rand(2, 3, 6, 6), True))


@needs_triton
def test_the_kernel_interpreted():
    cases = interpreted("interpreted_sigma")
    flat = cases.pop("flat")
    assert len(cases) >= 18 and len(flat) >= 12
    for name, case in cases.items():
        for found, on_cpu, exact in zip(case["found"], case["on_cpu"], case["exact"], strict=True):
            # The removal of the first singular value rounds: 1e-6 of it.
            assert found == pytest.approx(exact, rel=bound(case["side"]) + 2e-6 * exact), name
            assert found == pytest.approx(on_cpu, rel=1e-4 + 2e-6 * exact), name
    for name, found in flat.items():
        assert all(ratio == 1e300 for ratio in found), name


@needs_triton
@pytest.mark.parametrize("side", [16, 32])
def test_the_kernel_compiles_for_hopper(side):
    from .kernel_compiler import sigma_kernel

    assert sigma_kernel(side)["spilled"] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("sides", [(1, 1), (6, 6), (12, 16), (24, 24), (64, 64), (64, 33), (65, 70)])
def test_on_a_device_it_is_within_the_documented_bound(sides, centre):
    maps = torch.randn(14, 2, *sides, generator=torch.Generator().manual_seed(1)) + 3
    matrix = maps.double()
    matrix = matrix - matrix.mean((-2, -1), keepdim=True) if centre else matrix
    sigma = torch.linalg.svdvals(matrix)
    found = sigma_ratio(maps.cuda(), centre).cpu().double()
    if min(sides) == 1:
        assert (found == math.inf).all()
        return
    exact = sigma[..., 0] / sigma[..., 1]
    torch.testing.assert_close(found, exact, rtol=bound(min(sides)) + 1e-4, atol=0)
    torch.testing.assert_close(found, of_criterion(maps, centre).double(), rtol=2e-4, atol=0)
    if max(sides) <= LARGEST_SIDE:
        # Each matrix has a program of its own.
        assert torch.equal(found[:3], sigma_ratio(maps[:3].cuda(), centre).cpu().double())


@pytest.mark.gpu
def test_a_device_launches_one_kernel():
    maps = torch.rand(14, 2, 6, 6, device="cuda")
    sigma_ratio(maps)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        sigma_ratio(maps)
        torch.cuda.synchronize()
    names = [event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(names) == 1 and "sigma_ratio_kernel" in names[0]
