from __future__ import annotations

import pytest
import torch

from toprovar_fx.criteria import counter_uniform, random_score

MASK = 2**64 - 1


def splitmix(seed: int, stream: int, index: int) -> float:
    """The same function in Python integers."""

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
        return value ^ (value >> 31)

    step = 0x9E3779B97F4A7C15
    start = mix(mix(seed) + mix((stream + step) & MASK) & MASK)
    return ((mix((start + (index + 1) * step) & MASK) >> 41) + 0.5) * 2.0**-23


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63 - 1])
@pytest.mark.parametrize("stream", [0, 3, 415])
def test_equals_the_python_reference(seed: int, stream: int) -> None:
    expected = torch.tensor([splitmix(seed, stream, index) for index in range(20)])
    assert torch.equal(counter_uniform(seed, stream, 20), expected)


def test_is_uniform_and_open() -> None:
    u = counter_uniform(torch.arange(50), 0, 4000)
    assert u.shape == (50, 4000)
    assert u.min() > 0
    assert u.max() < 1
    histogram = torch.histc(u, 20, 0, 1) / u.numel()
    torch.testing.assert_close(histogram, torch.full((20,), 0.05), rtol=0.05, atol=0)


def test_neighbours_are_uncorrelated() -> None:
    u = counter_uniform(torch.arange(500), 0, 500)
    other = counter_uniform(torch.arange(500), 1, 500)
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u, other)):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 0.01


def test_a_longer_row_begins_with_the_shorter_one() -> None:
    assert torch.equal(counter_uniform(3, 1, 50)[:20], counter_uniform(3, 1, 20))


def test_random_score_is_the_same_noise() -> None:
    assert torch.equal(random_score(torch.tensor([4, 5]), 2, 9), counter_uniform(torch.tensor([4, 5]), 2, 9))
