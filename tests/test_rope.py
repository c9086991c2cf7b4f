import math

import pytest
import torch

from toprovar_fx.models.rope import angles_of, rope_grid, rope_table, rotate
from toprovar_fx.schedules import Schedule


def angles_by_hand(schedule, grid, head_dim):
    """Angle of every (token, pair), written as loops from the definition."""
    half = head_dim // 2
    rows = []
    for height, width in schedule.sides:
        for i in range(height):
            for j in range(width):
                position = (round(i * grid[0] / height), round(j * grid[1] / width))
                rows.append(
                    [
                        position[axis] * 10000.0 ** (-2 * m / half)
                        for axis in (0, 1)
                        for m in range(head_dim // 4)
                    ]
                )
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("head_dim", [4, 12, 32])
@pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        (Schedule.named("scenes").first(6), (32, 32)),
        (Schedule.infinity("0.06M", 1.5), (78, 52)),
        (Schedule(((1, 1), (2, 3), (4, 6))), (21, 32)),
    ],
)
def test_table_is_the_definition(head_dim, schedule, grid):
    assert rope_grid(schedule if schedule.grid else Schedule(schedule.sides), 32) == grid
    table = rope_table(schedule, head_dim, 32)[0, 0].double()
    angle = angles_by_hand(schedule, grid, head_dim)
    assert table.shape == (schedule.ends[-1], head_dim // 2, 2)
    torch.testing.assert_close(table[..., 0], angle.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(table[..., 1], angle.sin(), atol=1e-5, rtol=0)


def test_cosines_and_sines_lie_apart_in_memory():
    for row in angles_of(rope_table(Schedule.named("scenes"), 16, 32)[:, :, 5:21]):
        assert row.is_contiguous()
        assert row.data_ptr() % 16 == 0


def test_smaller_budget_shares_the_grid_of_the_largest():
    small = rope_table(Schedule.infinity("0.25M"), 32, 64)
    large = rope_table(Schedule.infinity("1M"), 32, 64)
    assert torch.equal(small, large[:, :, : small.shape[2]])


def test_rotation_is_complex_multiplication_of_adjacent_pairs():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8)
    angle = torch.randn(5, 4)
    table = torch.stack((angle.cos(), angle.sin()), -1)[None, None]
    expected = torch.view_as_complex(x.reshape(2, 3, 5, 4, 2)) * torch.polar(torch.ones(5, 4), angle)
    torch.testing.assert_close(rotate(x, angles_of(table)), torch.view_as_real(expected).flatten(-2))


def test_products_depend_on_the_offset_alone():
    torch.manual_seed(0)
    schedule = Schedule(((1, 1), (8, 8)), grid=(8, 8))
    table = rope_table(schedule, 16, 8)[:, :, 1:].view(1, 1, 8, 8, 8, 2)
    q, k = torch.randn(2, 1, 1, 1, 16)

    def product(a, b):
        here, there = (angles_of(table[:, :, i, j][:, :, None]) for i, j in (a, b))
        return (rotate(q, here) * rotate(k, there)).sum()

    assert product((1, 2), (4, 3)).item() == pytest.approx(product((3, 4), (6, 5)).item(), abs=1e-5)
    assert abs(product((1, 2), (4, 3)) - product((1, 2), (3, 4))).item() > 1e-3


def test_half_precision_input_is_rotated_in_float32():
    x = torch.randn(1, 1, 1, 4).bfloat16()
    table = torch.tensor([[math.cos(1.0), math.sin(1.0)]] * 2)[None, None, None]
    assert rotate(x, angles_of(table)).dtype == torch.float32
