from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprovar_fx.cli import values
from toprovar_fx.errors import OptionError, PromptError, SeedError


def test_literals_and_text() -> None:
    parsed = values.parse_options("fast", ["tau=0.5", "strict=true", "restore=cache", "keep={-1: 0.25}"])
    assert parsed == {"preset": "fast", "tau": 0.5, "strict": True, "restore": "cache", "keep": {-1: 0.25}}


@pytest.mark.parametrize(
    "assignment", ["tau", "=3", "taus=0.5", "tau=7", "restore=cashe", "keep={[1]: 2}", "keep=" + "(" * 5000]
)
def test_a_wrong_option_is_refused(assignment: str) -> None:
    with pytest.raises(OptionError):
        values.parse_options(None, [assignment])


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="twice"):
        values.parse_options(None, ["tau=0.5", "tau=0.6"])


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(OptionError, match="balanced"):
        values.parse_options("balancd", [])


@pytest.mark.parametrize(("seed", "images"), [(-1, 1), (2**63, 1), (2**63 - 1, 2), (10**30, 1)])
def test_seeds_out_of_range(seed: int, images: int) -> None:
    with pytest.raises(SeedError, match="expected an integer in 0"):
        values.check_seed(seed, images)


@given(st.integers(0, 2**63 - 1))
def test_seeds_in_range(seed: int) -> None:
    values.check_seed(seed)


@pytest.mark.parametrize("prompts", [[], [""], ["  "], ["a red circl"], ["a " * 25]])
def test_wrong_prompts(prompts: list[str]) -> None:
    with pytest.raises(PromptError):
        values.check_prompts(prompts, "scenes")


def test_another_model_has_its_own_words() -> None:
    values.check_prompts(["an astronaut"], "weights.safetensors")
    with pytest.raises(PromptError):
        values.check_prompts([" "], "weights.safetensors")


def test_device() -> None:
    assert values.check_device("cpu") == "cpu"
    assert values.check_device(None) in ("cpu", "cuda")
    with pytest.raises(OptionError, match="expected one of cpu"):
        values.check_device("gpu")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_sampling(value: float) -> None:
    with pytest.raises(OptionError, match="--tau"):
        values.check_sampling(None, value)


@given(st.text(max_size=200))
def test_slug_is_a_file_name(prompt: str) -> None:
    name = values.slug(prompt)
    assert 0 < len(name) <= values.SLUG_LENGTH
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
