"""Runs the kernel of `sigma_ratio` interpreted: `TRITON_INTERPRET=1 python -m tests.interpreted_sigma`.

A process of its own, because the interpreter is chosen when a kernel is defined. Prints one JSON object: per
case what the kernel found, what the function on a CPU finds, and the exact ratio, all as numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from toprovar_fx.criteria import sigma_ratio
from toprovar_fx.ops.triton_sigma import launch


def cases() -> Iterator[tuple[str, Tensor, bool]]:
    """A name, matrices, whether they are centred."""
    for height, width in ((1, 9), (2, 2), (5, 3), (6, 6), (17, 12), (16, 33)):
        yield f"{height} x {width}", torch.rand(2, height, width) + 1, False
    yield "centred", torch.rand(2, 2, 6, 7) + 5, True
    yield "no batch", torch.rand(6, 6), False
    yield "tall", torch.rand(2, 8, 24).mT, False
    yield "strides", torch.rand(3, 6, 2, 7).transpose(1, 2)[..., ::2], False
    yield "half precision", torch.rand(2, 6, 6).bfloat16(), False
    yield "tiny", 1e-20 * torch.rand(2, 6, 6), False
    yield "huge", 1e15 * torch.randn(2, 6, 6), True
    u, v = (torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0] for _ in "uv")
    for second in (1.0, 0.999, 0.5, 0.01):
        sigma = torch.tensor([1.0, second, *[second * 0.9] * 6], dtype=torch.float64)
        yield f"second {second}", ((u * sigma) @ v.T).float(), False
    y, x = torch.meshgrid(torch.linspace(0, 1, 12), torch.linspace(0, 1, 12), indexing="ij")
    yield "smooth", 5 + 0.1 * torch.sin(7 * x * y), False


def flat_cases() -> Iterator[tuple[str, Tensor, bool]]:
    """As `cases`, of matrices whose second singular value is nothing but rounding."""
    for value in (0.0, 0.1, 5.7, 1e-30):
        yield f"constant {value}", torch.full((2, 5, 5), value), False
        yield f"constant {value}, centred", torch.full((2, 5, 5), value), True
    yield "one entry", torch.ones(1, 1), False
    yield "rounding", torch.full((2, 12, 12), 5.7) + 3e-7 * torch.randn(2, 12, 12), True
    spoilt = torch.rand(3, 6, 6)
    spoilt[0, 1, 2], spoilt[1, 3, 3] = math.nan, math.inf
    yield "no numbers", spoilt[:2], False
    yield "no numbers, centred", spoilt[:2], True


def exact(matrix: Tensor, centre: bool) -> Tensor:
    """By a singular value decomposition in double precision."""
    matrix = matrix.double()
    sigma = torch.linalg.svdvals(matrix - matrix.mean((-2, -1), keepdim=True) if centre else matrix)
    return sigma[..., 0] / sigma[..., 1] if sigma.shape[-1] > 1 else torch.full(sigma.shape[:-1], math.inf)


def numbers(values: Tensor) -> list[float]:
    """Infinity as a number that JSON has."""
    found: list[float] = values.double().nan_to_num(nan=-1.0, posinf=1e300).flatten().tolist()
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    report: dict[str, object] = {"flat": {}}
    for name, given, centre in cases():
        found = launch(given, centre)
        assert found.shape == given.shape[:-2] and found.dtype == torch.float32
        sides = min(given.shape[-2:])
        known = numbers(found), numbers(sigma_ratio(given, centre)), numbers(exact(given, centre))
        report[name] = {"found": known[0], "on_cpu": known[1], "exact": known[2], "side": sides}
    report["flat"] = {name: numbers(launch(given, centre)) for name, given, centre in flat_cases()}
    assert all(torch.isinf(sigma_ratio(given, centre)).all() for _, given, centre in flat_cases())
    print(json.dumps(report))
