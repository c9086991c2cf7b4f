from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from toprovar_fx.criteria import layer_detail, sigma_ratio
from toprovar_fx.criteria.scope import TINY, UNSCALED


def exact(matrix: Tensor, centre: bool = False) -> Tensor:
    matrix = matrix.double()
    if centre:
        matrix = matrix - matrix.mean((-2, -1), keepdim=True)
    sigma = torch.linalg.svdvals(matrix)
    return sigma[..., 0] / sigma[..., 1]


def bound(matrix: Tensor) -> float:
    """Relative error that the docstring promises, and fp32 rounding."""
    return 3 * math.log(min(matrix.shape[-2:])) / 2048 + 1e-4


@given(
    h=st.integers(2, 40),
    w=st.integers(2, 40),
    offset=st.sampled_from([0.0, 1.0, 5.0, 30.0]),
    centre=st.booleans(),
    magnitude=st.sampled_from([1e-20, 1.0, 1e15]),
    seed=st.integers(0, 100),
)
@settings(derandomize=True, max_examples=80, deadline=None)
def test_random_maps_are_within_the_documented_bound(
    h: int, w: int, offset: float, centre: bool, magnitude: float, seed: int
) -> None:
    matrix = torch.randn(3, h, w, generator=torch.Generator().manual_seed(seed)) + offset
    expected = exact(matrix, centre)
    torch.testing.assert_close(
        sigma_ratio(matrix * magnitude, centre).double(), expected, rtol=bound(matrix), atol=0
    )


def test_many_equal_singular_values_do_not_underflow() -> None:
    """Powers are scaled from time to time: each eigenvalue is 1 / n of the trace."""
    assert float(sigma_ratio(torch.eye(512))) == pytest.approx(1, rel=1e-6)
    assert (1e4) ** -(2.0**UNSCALED) > 1e5 * TINY


class Kernels(TorchDispatchMode):
    """Counts operators that compute something, each a kernel on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "view" in func.name())
        return func(*args, **(kwargs or {}))


def test_it_is_a_short_chain_of_small_kernels() -> None:
    with Kernels() as seen:
        layer_detail(sigma_ratio(torch.rand(14, 2, 6, 6)), 0.02)
    assert seen.count <= 74, "124 with a scaling before every squaring"


@pytest.mark.parametrize("second", [1.0, 0.9999, 0.999, 0.99, 0.9, 0.5, 0.01, 0.001])
@pytest.mark.parametrize("third", [1.0, 0.999, 0.9, 0.0])
@pytest.mark.parametrize("size", [8, 64])
def test_clustered_spectra_are_within_the_documented_bound(second: float, third: float, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    u, v = (
        torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0] for _ in "uv"
    )
    sigma = torch.full((size,), second * third, dtype=torch.float64)
    sigma[0], sigma[1] = 1, second
    matrix = (u * sigma) @ v.T
    torch.testing.assert_close(
        sigma_ratio(matrix).double(), exact(matrix), rtol=bound(matrix) + 1e-6 / second, atol=0
    )


def test_smooth_entropy_maps_of_high_ratio() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 24), indexing="ij")
    maps = torch.stack([5 + 0.1 * torch.sin(7 * x * y), 6 + 0.5 * torch.cos(5 * (x - y)), 4 + x * x + y])
    assert (exact(maps) > 15).all()
    torch.testing.assert_close(sigma_ratio(maps).double(), exact(maps), rtol=2e-3, atol=0)


def test_token_matrices_and_their_transposes() -> None:
    tokens = torch.randn(2, 3, 144, 256) + 0.3
    torch.testing.assert_close(sigma_ratio(tokens).double(), exact(tokens), rtol=bound(tokens), atol=0)
    torch.testing.assert_close(sigma_ratio(tokens.mT), sigma_ratio(tokens))


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.1, 5.7, 1e-30])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (12, 12)])
def test_constant_maps_are_global(shape: tuple[int, int], value: float, centre: bool) -> None:
    ratio = sigma_ratio(torch.full(shape, value), centre)
    assert ratio == math.inf
    assert layer_detail(ratio, 0.02) == 0


def test_a_map_that_is_constant_but_for_rounding_is_global() -> None:
    """Centred, nothing but rounding is left, whose singular values say nothing."""
    maps = torch.full((2, 24, 24), 5.7) + 3e-7 * torch.randn(2, 24, 24)
    assert maps.unique().numel() > 1
    assert (sigma_ratio(maps, centre=True) == math.inf).all()


def test_rank_one_maps_are_global() -> None:
    matrix = torch.rand(16, 1) @ torch.rand(1, 16)
    assert layer_detail(sigma_ratio(matrix), 0.02) < 1e-6


def test_the_result_is_deterministic_and_independent_of_the_batch() -> None:
    maps = torch.rand(4, 12, 12)
    assert torch.equal(sigma_ratio(maps), sigma_ratio(maps))
    torch.testing.assert_close(sigma_ratio(maps[2]), sigma_ratio(maps)[2], rtol=1e-5, atol=0)


def test_detail_follows_equation_4() -> None:
    ratio = torch.tensor([1.0, 3.0, 51.0, math.inf])
    expected = torch.tensor([1.0, math.exp(-0.04), math.exp(-1.0), 0.0])
    torch.testing.assert_close(layer_detail(ratio, 0.02), expected)


@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.0, 1e6])
def test_detail_stays_in_the_unit_interval(beta: float) -> None:
    detail = layer_detail(torch.tensor([0.999999, 1.0, 2.0, 1e30, math.inf]), beta)
    assert ((detail >= 0) & (detail <= 1)).all()
    assert detail[-1] == 0
