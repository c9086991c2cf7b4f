"""Check and convert the values of command line arguments before any model is loaded."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import Any

from ..errors import OptionError, PromptError, SeedError, nearest

MODEL = "scenes"
SLUG_LENGTH = 48
_WORDS = {"true": True, "false": False, "none": None}


def check_prompts(prompts: Sequence[str], model: str) -> None:
    """Check prompts against the demo model's vocabulary; a model of another name has its own text encoder.

    Raises:
        PromptError: there is no prompt, or one is empty, too long or has an unknown word.
    """
    if not prompts:
        raise PromptError(
            "no prompt was given, expected at least one, e.g. 'a red circle left of a blue square'"
        )
    for prompt in prompts:
        if model in (MODEL, f"untrained:{MODEL}"):
            from ..scenes.vocab import encode_prompt

            encode_prompt(prompt)
        elif not prompt.strip():
            raise PromptError("a prompt is empty, expected at least one word")


def check_path(name: str, value: str | None) -> None:
    """Check that a path is one: an empty string would be the current folder.

    Raises:
        OptionError: it is given and empty.
    """
    if value is not None and not value.strip():
        raise OptionError(f"{name} is '{value}', expected a path")


def check_seed(seed: int, images: int = 1, bits: int = 63) -> None:
    """Check that ``seed .. seed + images - 1`` are seeds.

    Raises:
        SeedError: one of them lies outside ``0 .. 2**bits - 1``.
    """
    if not 0 <= seed <= 2**bits - images:
        raise SeedError(f"seed {seed} is out of range, expected an integer in 0 .. 2**{bits} - {images}")


def check_count(name: str, value: int, most: int | None = None) -> None:
    """Check a number of things.

    Raises:
        OptionError: ``value`` is below 1 or above ``most``.
    """
    if value < 1 or (most is not None and value > most):
        limit = "1 or more" if most is None else f"an integer in 1 .. {most}"
        raise OptionError(f"--{name} is {value}, expected {limit}")


def check_command(name: str, known: Sequence[str]) -> None:
    """Check the name of a command.

    Raises:
        OptionError: there is none of this name.
    """
    if name not in known:
        near = nearest(name, known)
        hint = f"; nearest: {near}" if near else ""
        raise OptionError(f"unknown command '{name}', expected one of {', '.join(known)}{hint}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that ``value`` of the option ``--name`` is one of ``choices``.

    Raises:
        OptionError: it is not.
    """
    if value not in choices:
        near = nearest(value, choices)
        hint = f"; nearest: {near}" if near else ""
        raise OptionError(f"--{name} is '{value}', expected one of {', '.join(choices)}{hint}")


def check_sampling(cfg: float | None, tau: float | None) -> None:
    """Check guidance and temperature where they are given.

    Raises:
        OptionError: one is negative or not finite.
    """
    for name, value in (("cfg", cfg), ("tau", tau)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise OptionError(f"--{name} is {value}, expected a number of at least 0")


def check_device(device: str | None) -> str:
    """Return ``device``, by default `cuda` where there is one and `cpu` elsewhere.

    Raises:
        OptionError: it is neither `cpu` nor a CUDA device of this machine.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        return "cuda" if count else "cpu"
    valid = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if device not in valid:
        raise OptionError(f"unknown device '{device}', expected one of {', '.join(valid)}")
    return device


def parse_options(preset: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``--preset`` and repeated ``--option key=value`` into the backend's ``options``, and check them.

    A policy's name in place of a preset's selects the policy, with its own constants.
    Values are Python literals (`0.5`, `true`, `(1, 2)`); what is none is taken as text.

    Raises:
        OptionError: an assignment without `=`, a key that is given twice, or what `Options.parse` refuses.
    """
    from ..options import Options
    from ..policies.registry import POLICIES

    options: dict[str, Any] = {} if preset is None else {"preset": preset}
    if preset in POLICIES:
        options = {"policy": preset}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise OptionError(f"option '{assignment}' is not an assignment, expected key=value")
        if key in options:
            raise OptionError(f"option '{key}' is given twice, expected it once")
        options[key] = _literal(value.strip())
    Options.parse(options)
    return options


def parse_speedup(text: str, name: str = "target") -> float:
    """Read dense over pruned FLOPs of the option ``--name``, as ``3x`` or ``3``.

    Raises:
        OptionError: not a number above 1 and at most 100.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)x?", text.strip())
    value = float(match[1]) if match else 0.0
    if not 1 < value <= 100:
        raise OptionError(f"--{name} '{text}': expected dense over pruned FLOPs, above 1 up to 100")
    return value


def parse_budgets(text: str) -> list[float]:
    """Read budgets with commas between, as of `parse_speedup`."""
    return [parse_speedup(part, "budgets") for part in text.split(",")]


def slug(prompt: str) -> str:
    """Return a file name for ``prompt``: lower case words joined by hyphens, at most 48 characters."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:SLUG_LENGTH].rstrip("-") or "image"


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        # A TypeError is of `{[1]: 2}`; the last two are of what is nested too deeply.
        return text


def check_seconds(seconds: float | None) -> None:
    """Check a time limit.

    Raises:
        OptionError: it is not a time above 0.
    """
    if seconds is not None and not seconds > 0:
        raise OptionError(f"--seconds is {seconds:g}, expected a time above 0")
