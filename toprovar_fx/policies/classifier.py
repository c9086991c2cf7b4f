"""A small linear classifier whose coefficients lie in a JSON file: nothing in it can run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import OptionError, nearest

FOLDER = Path(__file__).resolve().parent
STAGES = ("skip", "uncond")


@dataclass(frozen=True)
class Linear:
    """Multinomial logistic regression on standardised features.

    Attributes:
        classes: a label per row of `coefficients`.
        coefficients: [classes, features].
        intercepts: [classes].
        mean, std: of the features, in training.
    """

    classes: tuple[int, ...]
    coefficients: tuple[tuple[float, ...], ...]
    intercepts: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def decide(self, features: Sequence[float]) -> int:
        """The label whose ``coefficients (features - mean) / std + intercepts`` is largest."""
        scaled = [(x - m) / s for x, m, s in zip(features, self.mean, self.std, strict=True)]
        scores = [
            bias + sum(w * x for w, x in zip(row, scaled, strict=True))
            for row, bias in zip(self.coefficients, self.intercepts, strict=True)
        ]
        return self.classes[scores.index(max(scores))]


@lru_cache(maxsize=16)
def load_classifier(name: str) -> Mapping[str, Linear]:
    """Read the classifiers `skip` and `uncond` of a file.

    Args:
        name: one that comes with the package, or the path of a JSON file.

    Raises:
        OptionError: there is no such file, or it holds something else.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.json"))
    path = FOLDER / f"{name}.json" if name in known else Path(name)
    if not path.is_file():
        near = nearest(name, known)
        hint = f"; nearest valid: {near!r}" if near else ""
        raise OptionError(f"classifier={name!r}: expected a JSON file or one of {known}{hint}")
    try:
        content = json.loads(path.read_text())
        return {stage: _linear(content[stage]) for stage in STAGES}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OptionError(
            f"classifier={name!r}: expected classes, coefficients, intercepts, mean and std of "
            f"{' and '.join(STAGES)}: {type(error).__name__}: {error}"
        ) from None


def _linear(given: Mapping[str, Any]) -> Linear:
    found = Linear(
        tuple(int(label) for label in given["classes"]),
        tuple(tuple(float(w) for w in row) for row in given["coefficients"]),
        tuple(float(bias) for bias in given["intercepts"]),
        tuple(float(value) for value in given["mean"]),
        tuple(float(value) for value in given["std"]),
    )
    sizes = {len(found.classes), len(found.coefficients), len(found.intercepts)}
    widths = {len(found.mean), len(found.std), *(len(row) for row in found.coefficients)}
    if len(sizes) != 1 or widths != {2}:
        raise ValueError("one row of two coefficients, and one intercept, for each class")
    if not set(found.classes) <= {0, 1, 2, 3}:
        raise ValueError(f"classes {found.classes}: expected some of 0 to 3")
    if min(found.std) <= 0:
        raise ValueError("std: expected positive numbers")
    return found
