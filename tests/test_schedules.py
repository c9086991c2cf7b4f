import pytest

from toprovar_fx.errors import ScheduleError
from toprovar_fx.schedules import INFINITY_BUDGETS, Schedule, infinity_ratios


def test_scenes_schedule_tokens_and_ends():
    schedule = Schedule.named("scenes")
    assert schedule.tokens == (1, 4, 9, 16, 36, 64, 144, 256, 576, 1024)
    assert schedule.ends == (1, 5, 14, 30, 66, 130, 274, 530, 1106, 2130)
    assert len(schedule) == 10
    assert schedule.h_div_w == 1.0


def test_square_megapixel_ends_are_the_official_cache_lengths():
    expected = (1, 5, 21, 57, 121, 265, 521, 921, 1497, 2521, 4121, 6425, 10521)
    assert Schedule.infinity("1M").ends == expected


@pytest.mark.parametrize("budget", INFINITY_BUDGETS)
@pytest.mark.parametrize("ratio", infinity_ratios())
def test_every_official_schedule_has_its_ratio_and_length(budget, ratio):
    schedule = Schedule.infinity(budget, ratio)
    assert len(schedule) == INFINITY_BUDGETS[budget]
    assert schedule.h_div_w == pytest.approx(ratio, abs=0.01)
    assert schedule.grid == Schedule.infinity("1M", ratio).sides[-1]


def test_there_are_fifteen_ratios_and_inverses_are_transposed():
    assert len(infinity_ratios()) == 15
    tall, wide = Schedule.infinity("1M", 1.5), Schedule.infinity("1M", 0.667)
    assert wide.sides == tuple((width, height) for height, width in tall.sides)
    assert tall.sides[-1] == (78, 52)


def test_unknown_ratio_names_the_valid_ones():
    with pytest.raises(ScheduleError, match=r"h_div_w=1\.6.*1\.5, 1\.75.*nearest is 1\.5"):
        Schedule.infinity("1M", 1.6)
    with pytest.raises(ScheduleError, match="h_div_w=nan"):
        Schedule.infinity("1M", float("nan"))


def test_unknown_names_are_refused():
    with pytest.raises(ScheduleError, match=r"0\.06M"):
        Schedule.infinity("2M")
    with pytest.raises(ScheduleError, match="did you mean"):
        Schedule.named("scene")


@pytest.mark.parametrize("sides", [(), ((2, 2),), ((1, 1), (4, 4), (3, 3))])
def test_impossible_sides_are_refused(sides):
    with pytest.raises(ScheduleError):
        Schedule(sides)


def test_first_scales_keep_the_grid():
    schedule = Schedule.infinity("1M", 2.0)
    assert schedule.first(10) == Schedule.infinity("0.25M", 2.0)
    with pytest.raises(ScheduleError, match=r"1 \.\. 13"):
        schedule.first(14)


@pytest.mark.parametrize(
    "sides",
    [
        5,
        "scenes",
        ((1, 1), 4),
        ((1, 1), (2,)),
        ((1, 1), (2, 2, 2)),
        ((1, 1), (2.5, 2)),
        ((1, 1), (float("nan"), 2)),
        ((1, 1), ("2", "2")),
        ((True, True), (2, 2)),
        ((1, 1), (0, 2)),
    ],
)
def test_sides_are_pairs_of_integers(sides):
    with pytest.raises(ScheduleError, match="expected"):
        Schedule(sides)


def test_lists_become_tuples():
    """As JSON gives them; a schedule is hashed and compared."""
    made = Schedule([[1, 1], [2, 2]], grid=[4, 4])
    assert made == Schedule(((1, 1), (2, 2)), grid=(4, 4)) and hash(made) is not None


def test_other_arguments_of_the_wrong_type():
    scenes = Schedule.named("scenes")
    for make in (
        lambda: Schedule(((1, 1),), grid=3),
        lambda: scenes.first("2"),
        lambda: scenes.first(1.5),
        lambda: Schedule.infinity("1M", h_div_w="1"),
        lambda: Schedule.infinity(["1M"]),
        lambda: Schedule.named([]),
        lambda: Schedule.named(None),
    ):
        with pytest.raises(ScheduleError, match="expected"):
            make()
