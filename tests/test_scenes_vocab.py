import pytest

from toprovar_fx.errors import PromptError
from toprovar_fx.scenes import MAX_WORDS, VOCAB_SIZE, decode_ids, encode_prompt
from toprovar_fx.scenes.vocab import WORDS


def test_words_are_unique_and_padding_is_zero():
    assert len(set(WORDS)) == VOCAB_SIZE == len(WORDS)
    assert WORDS[0] == ""
    assert 40 <= VOCAB_SIZE <= 60


def test_encode_and_decode_are_inverse():
    text = "a striped red circle to the left of an orange square on grass"
    assert decode_ids(encode_prompt(text)) == text
    assert decode_ids([*encode_prompt("three stars"), 0, 0]) == "three stars"


def test_case_and_punctuation_do_not_matter():
    assert encode_prompt("A red circle, a STAR and a ring.") == encode_prompt(
        "a red circle a star and a ring"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" , ", "empty"),
        ("a red cirle", "did you mean 'circle'"),
        ("a red zzz", "known shapes"),
        ("a " * (MAX_WORDS + 1), f"at most {MAX_WORDS}"),
    ],
)
def test_bad_prompts_say_what_is_expected(text, message):
    with pytest.raises(PromptError, match=message) as raised:
        encode_prompt(text)
    assert "\n" not in str(raised.value)


def test_a_prompt_is_a_string():
    with pytest.raises(PromptError, match="expected a string"):
        encode_prompt(7)  # type: ignore[arg-type]


def test_the_longest_prompt_fits():
    assert len(encode_prompt("a " * MAX_WORDS)) == MAX_WORDS
