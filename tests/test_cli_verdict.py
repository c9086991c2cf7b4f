from __future__ import annotations

import pytest

from toprovar_fx.cli.verdict import as_eval_prompt
from toprovar_fx.scenes import eval_prompts


def test_every_evaluation_prompt_is_read_back() -> None:
    for prompt in eval_prompts(600):
        read = as_eval_prompt(prompt.text)
        assert read is not None, prompt.text
        assert (read.requirements, read.relation) == (prompt.requirements, prompt.relation), prompt.text
        assert read.category == prompt.category, prompt.text


@pytest.mark.parametrize(
    ("text", "relation"),
    [
        ("A picture of a striped red circle to the left of a blue square on grass.", "left of"),
        ("a circle, a square", None),
        ("two red circles above a plain star", "above"),
    ],
)
def test_free_prompts(text: str, relation: str | None) -> None:
    read = as_eval_prompt(text)
    assert read is not None
    assert len(read.requirements) == 2
    assert read.relation == relation


@pytest.mark.parametrize(
    "text",
    ["left left", "a circle and a square and a star", "a red ring and a pink ring", "grass", "red", ""],
)
def test_what_cannot_be_checked(text: str) -> None:
    assert as_eval_prompt(text) is None
