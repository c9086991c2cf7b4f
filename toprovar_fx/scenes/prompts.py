"""Evaluation prompts in GenEval's six categories, and ground-truth scenes for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from . import scene as sc
from .hashing import image_keys
from .sampler import HELD_OUT, compose
from .scene import MAX_OBJECTS, SceneBatch
from .vocab import BACKGROUNDS, COLOURS, NUMBERS, PLURALS, SHAPES

CATEGORIES = ("single_object", "two_objects", "counting", "colors", "position", "color_attribution")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Requirement:
    """``count`` objects of ``shape`` and, unless None, of ``colour``."""

    shape: str
    colour: str | None = None
    count: int = 1


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt and what its image must show.

    Attributes:
        category: One of `CATEGORIES`.
        text: The prompt.
        requirements: All must hold. In ``counting`` the count is exact, elsewhere it is a minimum.
        relation: One of `RELATIONS` between the first and the second requirement, or None.
    """

    category: str
    text: str
    requirements: tuple[Requirement, ...]
    relation: str | None = None


def _phrase(requirement: Requirement) -> str:
    if requirement.count > 1:
        plural = PLURALS[SHAPES.index(requirement.shape)]
        words = [NUMBERS[requirement.count - 1], requirement.colour or "", plural]
    else:
        words = ["an" if requirement.colour == "orange" else "a", requirement.colour or "", requirement.shape]
    return " ".join(word for word in words if word)


def _objects(rng: random.Random, number: int, coloured: bool, held_out: bool) -> list[Requirement]:
    """Draw different shapes. Held-out: one of them, at random, is a held-out pair; otherwise none is."""
    shapes = rng.sample(SHAPES, number)
    colours: list[str | None] = [*rng.sample(COLOURS, number)] if coloured else [None] * number
    if held_out:
        colour, shape = rng.choice(HELD_OUT)
        index = rng.randrange(number)
        if shape in shapes:
            shapes[shapes.index(shape)] = shapes[index]
        if colour in colours:
            colours[colours.index(colour)] = colours[index]
        shapes[index], colours[index] = shape, colour
    # Among held-out prompts the other object may form such a pair by chance as well; elsewhere none may.
    if not held_out and any(pair in HELD_OUT for pair in zip(colours, shapes, strict=True)):
        return _objects(rng, number, coloured, held_out)
    return [Requirement(shape, colour) for shape, colour in zip(shapes, colours, strict=True)]


def _single_object(rng: random.Random, held_out: bool) -> EvalPrompt:
    (a,) = _objects(rng, 1, False, held_out)
    return EvalPrompt("single_object", _phrase(a), (a,))


def _two_objects(rng: random.Random, held_out: bool) -> EvalPrompt:
    a, b = _objects(rng, 2, False, held_out)
    return EvalPrompt("two_objects", f"{_phrase(a)} and {_phrase(b)}", (a, b))


def _counting(rng: random.Random, held_out: bool) -> EvalPrompt:
    (a,) = _objects(rng, 1, False, held_out)
    group = Requirement(a.shape, a.colour, rng.randint(2, MAX_OBJECTS))
    return EvalPrompt("counting", _phrase(group), (group,))


def _colors(rng: random.Random, held_out: bool) -> EvalPrompt:
    (a,) = _objects(rng, 1, True, held_out)
    return EvalPrompt("colors", _phrase(a), (a,))


def _position(rng: random.Random, held_out: bool) -> EvalPrompt:
    a, b = _objects(rng, 2, False, held_out)
    relation = rng.choice(RELATIONS)
    return EvalPrompt("position", f"{_phrase(a)} {relation} {_phrase(b)}", (a, b), relation)


def _color_attribution(rng: random.Random, held_out: bool) -> EvalPrompt:
    a, b = _objects(rng, 2, True, held_out)
    return EvalPrompt("color_attribution", f"{_phrase(a)} and {_phrase(b)}", (a, b))


_MAKERS: tuple[Callable[[random.Random, bool], EvalPrompt], ...] = (
    _single_object,
    _two_objects,
    _counting,
    _colors,
    _position,
    _color_attribution,
)


def eval_prompts(n: int = 1200, seed: int = 0, held_out: bool = False) -> list[EvalPrompt]:
    """Draw ``n`` prompts, the categories in turn so that every prefix is balanced.

    Half of the prompts name a background. Prompts repeat, as GenEval's do with different seeds: there are
    only eight prompts of a single object.

    Args:
        n: Number of prompts.
        seed: Any integer.
        held_out: True: one object of every prompt is a `HELD_OUT` pair, in every category. False: none is.
    """
    rng = random.Random(seed)
    prompts = []
    for index in range(n):
        prompt = _MAKERS[index % len(_MAKERS)](rng, held_out)
        ending = f" on {rng.choice(BACKGROUNDS)}" if rng.random() < 0.5 else ""
        prompts.append(replace(prompt, text=prompt.text + ending))
    return prompts


def scenes_for_prompts(
    prompts: Sequence[EvalPrompt], *, seed: int = 0, device: torch.device | str = "cpu"
) -> SceneBatch:
    """Compose one scene per prompt that fulfils it: the ground truth for testing a checker.

    What a prompt leaves open (colours, textures, positions) is drawn at random; backgrounds too, whatever the
    prompt says of them.
    """
    rng = random.Random(seed)
    rows = []
    for prompt in prompts:
        wanted = list(prompt.requirements)
        if prompt.relation in ("right of", "below"):  # scenes are in reading order
            wanted.reverse()
        if len(wanted) == 2:
            kind, n = sc.TWO, 2
            layout = sc.VERTICAL if prompt.relation in ("above", "below") else sc.HORIZONTAL
            if prompt.relation is None:
                layout = rng.choice((sc.HORIZONTAL, sc.VERTICAL))
        else:
            n = wanted[0].count
            kind = sc.SINGLE if n == 1 else sc.COUNT
            choices = ((sc.CENTRE,), (sc.HORIZONTAL, sc.VERTICAL), (sc.ROW, sc.TRIANGLE), (sc.GRID,))
            layout, wanted = rng.choice(choices[n - 1]), wanted * n
        spare = rng.sample(range(len(COLOURS)), MAX_OBJECTS)
        if kind == sc.COUNT:
            spare = spare[:1] * MAX_OBJECTS
        named = [COLOURS.index(r.colour) if r.colour else None for r in wanted]
        colour = [free if index is None else index for index, free in zip(named, spare, strict=False)]
        shape = [SHAPES.index(r.shape) for r in wanted]
        padding = [0] * (MAX_OBJECTS - n)
        rows.append((n, kind, layout, *shape, *padding, *colour, *padding))
    table = torch.tensor(rows, dtype=torch.int64, device=device).view(-1, 3 + 2 * MAX_OBJECTS)
    n_, kind_, layout_ = table[:, 0], table[:, 1], table[:, 2]
    shape_, colour_ = table[:, 3 : 3 + MAX_OBJECTS], table[:, 3 + MAX_OBJECTS :]
    return compose(n_, kind_, layout_, shape_, colour_, image_keys(seed, len(prompts), device))
