from __future__ import annotations

import pytest

from toprovar_fx import errors


@pytest.mark.parametrize(
    "name",
    [
        "OptionError",
        "PromptError",
        "CheckpointError",
        "ScheduleError",
        "SeedError",
        "OutputError",
        "GraphError",
    ],
)
def test_every_error_is_a_value_error_of_the_package(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, errors.ToProVARError)
    assert issubclass(error, ValueError)


def test_nearest_ignores_case_and_returns_the_choice_as_written() -> None:
    assert errors.nearest("bALANCE", ["fast", "Balanced"]) == "Balanced"


@pytest.mark.parametrize("word", ["xqz", "", 3.5, None])
def test_nearest_is_none_without_a_similar_choice(word: object) -> None:
    assert errors.nearest(word, ["balanced", "literal"]) is None


def test_nearest_accepts_no_choices() -> None:
    assert errors.nearest("fast", []) is None
