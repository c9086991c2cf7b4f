from __future__ import annotations

import pytest
import torch

from toprovar_fx.criteria import expand_cfg_rows, join_cfg_rows
from toprovar_fx.errors import ScheduleError


def test_rows_are_ordered_conditional_first() -> None:
    statistic = torch.tensor([[1.0], [2.0], [5.0], [10.0]])
    assert join_cfg_rows(statistic, 2, "shared").tolist() == [[3.0], [6.0]]
    assert join_cfg_rows(statistic, 2, "cond").tolist() == [[1.0], [2.0]]
    assert torch.equal(join_cfg_rows(statistic, 2, "per_row"), statistic)


@pytest.mark.parametrize("rule", ["shared", "cond", "per_row"])
def test_without_guidance_rows_are_left_alone(rule: str) -> None:
    statistic = torch.rand(3, 7)
    assert torch.equal(join_cfg_rows(statistic, 3, rule), statistic)  # type: ignore[arg-type]


def test_other_numbers_of_rows_are_rejected() -> None:
    with pytest.raises(ScheduleError, match="5 rows in a generation of 2 images: expected 2, or 4"):
        join_cfg_rows(torch.rand(5, 3), 2, "shared")


def test_a_shared_keep_set_goes_to_both_rows_of_its_image() -> None:
    indices = torch.tensor([[0, 2], [1, 3]])
    assert expand_cfg_rows(indices, 4).tolist() == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert torch.equal(expand_cfg_rows(indices, 2), indices)
