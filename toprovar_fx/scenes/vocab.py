"""The closed vocabulary of scene captions, and the names that the other scene modules index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..errors import PromptError, nearest

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")
PLURALS = ("circles", "squares", "triangles", "stars", "hearts", "crosses", "rings", "crescents")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TEXTURES = ("plain", "striped", "dotted", "checkered", "glossy")
BACKGROUNDS = ("grass", "sand", "water", "tiles", "fabric", "wood")
NUMBERS = ("one", "two", "three", "four")
FUNCTION_WORDS = ("a", "an", "and", "on", "of", "to", "the", "left", "right", "above", "below", "picture")

WORDS = ("", *FUNCTION_WORDS, *NUMBERS, *COLOURS, *TEXTURES, *SHAPES, *PLURALS, *BACKGROUNDS)
VOCAB_SIZE = len(WORDS)
PADDING = 0
MAX_WORDS = 24
WORD_IDS = {word: index for index, word in enumerate(WORDS) if word}


def word_ids(words: Iterable[str]) -> list[int]:
    """Return the ids of vocabulary words; a word outside the vocabulary is a KeyError."""
    return [WORD_IDS[word] for word in words]


def encode_prompt(text: str) -> list[int]:
    """Turn a prompt into word ids, 1 to `MAX_WORDS` of them.

    Case, commas and full stops do not matter.

    Raises:
        PromptError: The prompt is empty, has more than `MAX_WORDS` words or holds an unknown word.
    """
    if not isinstance(text, str):
        raise PromptError(f"prompt {text!r} is a {type(text).__name__}; expected a string")
    words = re.sub(r"[,.;!]", " ", text).casefold().split()
    if not words:
        raise PromptError(
            f"prompt {text!r} is empty; expected words such as 'a red circle above a blue star'"
        )
    for word in words:
        if word not in WORD_IDS:
            match = nearest(word, WORD_IDS)
            hint = f"did you mean {match!r}?" if match else f"known shapes: {', '.join(SHAPES)}"
            raise PromptError(f"unknown word {word!r} in prompt {text!r}; {hint}")
    if len(words) > MAX_WORDS:
        raise PromptError(f"prompt has {len(words)} words; expected at most {MAX_WORDS}")
    return word_ids(words)


def decode_ids(ids: Sequence[int]) -> str:
    """Turn word ids back into text; padding (0) is left out."""
    return " ".join(WORDS[int(index)] for index in ids if int(index) != PADDING)
