from __future__ import annotations

import torch

from toprovar_fx.criteria import frequency_score, prunability, select_tokens


def test_frequency_is_the_squared_distance_from_the_mean_token() -> None:
    tokens = torch.randn(2, 30, 8)
    expected = torch.stack(
        [torch.stack([((row[i] - row.mean(0)) ** 2).sum() for i in range(30)]) for row in tokens.double()]
    )
    torch.testing.assert_close(frequency_score(tokens).double(), expected, rtol=1e-5, atol=1e-6)


def test_frequency_survives_a_large_common_offset_and_half_precision() -> None:
    tokens = torch.randn(1, 40, 16)
    torch.testing.assert_close(frequency_score(tokens + 1000), frequency_score(tokens), rtol=1e-3, atol=1e-3)
    assert frequency_score(tokens.bfloat16()).dtype == torch.float32


def test_equal_tokens_have_frequency_zero() -> None:
    assert not frequency_score(torch.full((2, 9, 4), 0.5)).any()


def test_prunability_keeps_the_wanted_end() -> None:
    statistic = torch.tensor([0.5, 4.0, 1.0, 3.0])
    assert select_tokens(-prunability(statistic, keep_low=True), 2).tolist() == [0, 2]
    assert select_tokens(-prunability(statistic, keep_low=False), 2).tolist() == [1, 3]


def test_prunability_mirrors_within_the_range() -> None:
    statistic = torch.rand(3, 20) * 5
    mirrored = prunability(statistic, keep_low=False)
    assert (mirrored >= 0).all()
    torch.testing.assert_close(mirrored.amin(-1), statistic.amin(-1))
    torch.testing.assert_close(mirrored.amax(-1), statistic.amax(-1))
    torch.testing.assert_close(prunability(mirrored, keep_low=False), statistic)
