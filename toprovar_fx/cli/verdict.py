"""Turn a free prompt of the demo model into what SceneEval can check, where it can."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..scenes.vocab import BACKGROUNDS, COLOURS, NUMBERS, PLURALS, SHAPES, TEXTURES

if TYPE_CHECKING:
    from ..scenes.prompts import EvalPrompt

_OBJECT = re.compile(
    rf"(?:(?P<number>{'|'.join(NUMBERS)}|an?) )?"
    rf"(?:(?:{'|'.join(TEXTURES)}) )?"
    rf"(?:(?P<colour>{'|'.join(COLOURS)}) )?"
    rf"(?P<shape>{'|'.join((*PLURALS, *SHAPES))})"
)
_LINK = re.compile(r" (?:to the )?(left of|right of)(?: |$)| (above|below)(?: |$)| and(?: |$)|, ?")
_BACKGROUND = re.compile(rf" on (?:{'|'.join(BACKGROUNDS)})$")


def as_eval_prompt(text: str) -> EvalPrompt | None:
    """Read ``text`` as one or two groups of objects, or return None if it says something else.

    Textures and backgrounds are not checked, as in SceneEval.
    """
    from ..scenes.prompts import EvalPrompt, Requirement

    words = " ".join(re.sub(r"[.;!]", " ", text).casefold().split())
    words = _BACKGROUND.sub("", words.removeprefix("a picture of "))
    links = list(_LINK.finditer(words))
    if len(links) > 1:
        return None
    pieces = [words] if not links else [words[: links[0].start()], words[links[0].end() :]]
    requirements = []
    for piece in pieces:
        match = _OBJECT.fullmatch(piece.strip())
        if match is None:
            return None
        shape, number = match["shape"], match["number"]
        count = NUMBERS.index(number) + 1 if number in NUMBERS else 1
        if shape in PLURALS:
            shape = SHAPES[PLURALS.index(shape)]
        requirements.append(Requirement(shape, match["colour"], count))
    if len({requirement.shape for requirement in requirements}) < len(requirements):
        return None  # the checker tells groups apart by shape
    relation = (links[0][1] or links[0][2]) if links else None
    if relation:
        category = "position"
    elif len(requirements) == 2:
        category = "color_attribution" if any(item.colour for item in requirements) else "two_objects"
    elif requirements[0].count > 1:
        category = "counting"
    else:
        category = "colors" if requirements[0].colour else "single_object"
    return EvalPrompt(category, text, tuple(requirements), relation)


def verdicts(images: NDArray[np.uint8], text: str) -> list[bool] | None:
    """Return for each image ``[B, 256, 256, 3]`` whether it shows ``text``; None if that is unknown."""
    prompt = as_eval_prompt(text)
    if prompt is None or images.shape[1:3] != (256, 256):
        return None
    from ..evaluation import score_images

    return [bool(passed) for passed in score_images(images, [prompt] * len(images))]
