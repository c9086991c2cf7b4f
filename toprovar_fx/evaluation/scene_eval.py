"""SceneEval: GenEval's six categories, judged by the classical detector of `checker`."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ToProVARError
from ..scenes.prompts import CATEGORIES, EvalPrompt, Requirement
from .checker import Detection, detect

_MIN_OFFSET = 30.0  # pixels between two objects along the axis of their relation
_MAX_SLANT = 2.0  # of the offset across that axis to the offset along it


@dataclass(frozen=True)
class EvalReport:
    """Scores of a set of images.

    Attributes:
        overall: Mean of the categories' scores, as in GenEval.
        categories: Share of images that fulfil their prompt, per category.
        n: Number of images.
    """

    overall: float
    categories: dict[str, float]
    n: int

    def to_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_scores(cls, scores: Sequence[bool], prompts: Sequence[EvalPrompt]) -> EvalReport:
        """Summarise the scores of `score_images`; categories without a prompt are left out."""
        grouped: dict[str, list[bool]] = defaultdict(list)
        for score, prompt in zip(scores, prompts, strict=True):
            grouped[prompt.category].append(score)
        means = {name: sum(grouped[name]) / len(grouped[name]) for name in CATEGORIES if grouped[name]}
        return cls(sum(means.values()) / max(1, len(means)), means, len(scores))


def _related(first: Detection, second: Detection, relation: str) -> bool:
    dx, dy = second.cx - first.cx, second.cy - first.cy
    along, across = {
        "left of": (dx, dy),
        "right of": (-dx, dy),
        "above": (dy, dx),
        "below": (-dy, dx),
    }[relation]
    return along >= _MIN_OFFSET and abs(across) <= _MAX_SLANT * along


def _fulfilled(requirement: Requirement, found: Sequence[Detection], exact: bool) -> bool:
    of_shape = [detection for detection in found if detection.shape == requirement.shape]
    if exact and len(of_shape) != requirement.count:
        return False
    return len(_matching(requirement, of_shape)) >= requirement.count


def _matching(requirement: Requirement, of_shape: Sequence[Detection]) -> list[Detection]:
    """GenEval looks at the colours of the `count` most certain objects of the class, not of all."""
    certain = of_shape[: requirement.count]
    return [d for d in certain if requirement.colour is None or d.colour == requirement.colour]


def fulfils(found: Sequence[Detection], prompt: EvalPrompt) -> bool:
    """Tell whether detections fulfil a prompt.

    GenEval's semantics: every requirement needs its number of objects of that shape, and of that colour where
    one is named; other objects do no harm; in ``counting`` the number is exact; a relation is judged between
    the most certain objects of either shape.

    Args:
        found: Detections, the most certain one first.
        prompt: The prompt.
    """
    exact = prompt.category == "counting"
    if not all(_fulfilled(requirement, found, exact) for requirement in prompt.requirements):
        return False
    if prompt.relation is None:
        return True
    shapes = [requirement.shape for requirement in prompt.requirements]
    first, second = (next(d for d in found if d.shape == shape) for shape in shapes)
    return _related(first, second, prompt.relation)


def prompt_match(found: Sequence[Detection], prompt: EvalPrompt) -> float:
    """How much of a prompt an image shows, in [0, 1]; 1 where `fulfils` holds, and only there.

    The share of the facts that hold: every object that is asked for is one, and so is the relation. Where the
    number is exact, every object too many is a fact that does not hold.

    Args:
        found: Detections, the most certain one first.
        prompt: The prompt.
    """
    facts = held = 0
    for requirement in prompt.requirements:
        of_shape = [detection for detection in found if detection.shape == requirement.shape]
        surplus = max(0, len(of_shape) - requirement.count) if prompt.category == "counting" else 0
        facts += requirement.count + surplus
        held += len(_matching(requirement, of_shape))
    if prompt.relation is not None:
        shapes = [requirement.shape for requirement in prompt.requirements]
        first, second = (next((d for d in found if d.shape == shape), None) for shape in shapes)
        facts += 1
        held += first is not None and second is not None and _related(first, second, prompt.relation)
    return held / facts


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one image.

    Attributes:
        passed: Whether it fulfils its prompt, see `fulfils`.
        match: How much of the prompt it shows, see `prompt_match`.
    """

    passed: bool
    match: float


def _judge_one(image: npt.NDArray[np.uint8], prompt: EvalPrompt) -> Verdict:
    found = detect(image)
    return Verdict(fulfils(found, prompt), prompt_match(found, prompt))


def judge_images(
    images: npt.NDArray[np.uint8], prompts: Sequence[EvalPrompt], workers: int = 1
) -> list[Verdict]:
    """Judge images against their prompts.

    Args:
        images: sRGB, uint8 ``[N, 256, 256, 3]``.
        prompts: N prompts.
        workers: Processes. More than one starts fresh interpreters, so that the calling script needs the
            usual ``if __name__ == "__main__"`` guard.

    Raises:
        ToProVARError: The images have another type or shape, or their number differs from the prompts'.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ToProVARError(f"images are {images.dtype} {images.shape}; expected uint8 (N, height, width, 3)")
    if len(images) != len(prompts):
        raise ToProVARError(f"{len(images)} images for {len(prompts)} prompts; expected equal numbers")
    if workers <= 1:
        return [_judge_one(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Forking a process that holds CUDA or OpenMP threads is unsafe.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return list(pool.map(_judge_one, images, prompts, chunksize=max(1, len(images) // (4 * workers))))


def score_images(
    images: npt.NDArray[np.uint8], prompts: Sequence[EvalPrompt], workers: int = 1
) -> list[bool]:
    """Whether images fulfil their prompts; arguments and errors as of `judge_images`."""
    return [verdict.passed for verdict in judge_images(images, prompts, workers)]


@dataclass(frozen=True)
class SceneEval:
    """The benchmark: fixed prompts and a judge.

    Attributes:
        prompts: The prompts, see `scenes.eval_prompts`.
        workers: Processes of the judge.
    """

    prompts: Sequence[EvalPrompt]
    workers: int = 1

    def report(self, images: npt.NDArray[np.uint8]) -> EvalReport:
        """Judge one image per prompt, uint8 ``[N, 256, 256, 3]``, and summarise."""
        return EvalReport.from_scores(score_images(images, self.prompts, self.workers), self.prompts)


def _meaning(prompt: EvalPrompt) -> tuple[frozenset[Requirement] | tuple[Requirement, ...], str | None]:
    """Return equal values for prompts that demand the same: "A left of B" is "B right of A"."""
    if prompt.relation is None:
        return frozenset(prompt.requirements), None
    opposite = {"right of": "left of", "below": "above"}
    if prompt.relation in opposite:
        return prompt.requirements[::-1], opposite[prompt.relation]
    return prompt.requirements, prompt.relation


def mismatched_prompts(prompts: Sequence[EvalPrompt], seed: int = 0) -> list[EvalPrompt]:
    """Permute prompts within their categories so that none keeps its meaning: the negative control.

    Raises:
        ToProVARError: A category has too few different prompts.
    """
    rng = random.Random(seed)
    shuffled = list(prompts)
    for category in CATEGORIES:
        places = [index for index, prompt in enumerate(prompts) if prompt.category == category]
        meanings = {index: _meaning(prompts[index]) for index in places}
        sources = rng.sample(places, len(places))
        for turn, place in enumerate(places):
            for _ in range(100 * len(places)):
                if meanings[sources[turn]] != meanings[place]:
                    break
                # A swap must not spoil a place that is already settled.
                other = rng.randrange(len(places))
                if meanings[sources[turn]] != meanings[places[other]]:
                    sources[turn], sources[other] = sources[other], sources[turn]
            else:
                raise ToProVARError(f"category {category} has too few different prompts to mismatch them")
        for place, source in zip(places, sources, strict=True):
            shuffled[place] = prompts[source]
    return shuffled
