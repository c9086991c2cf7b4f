"""Checks of single option values: each takes a name and a value, and returns the normalised value or raises.

A message is one line: ``name=value: expected ...; nearest valid: ...``. Sequences become tuples and mappings
become nested tuples, so that options hash and survive a round trip through JSON.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .errors import OptionError, nearest
from .registry import Registry

KeepRatios = tuple[tuple[int, float | tuple[tuple[int, float], ...]], ...]


@dataclass(frozen=True)
class Check:
    """How one option is validated: ``values`` says what is valid, ``apply(name, value)`` enforces it."""

    values: str
    apply: Callable[[str, object], Any]


def shown(value: object) -> str:
    """Return ``repr(value)`` on one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def reject(name: str, value: object, expected: str, suggestion: object = None) -> OptionError:
    """Build the error for ``value``; ``suggestion`` is the nearest valid value, or None if there is none."""
    hint = "" if suggestion is None else f"; nearest valid: {shown(suggestion)}"
    return OptionError(f"{name}={shown(value)}: expected {expected}{hint}")


def flag() -> Check:
    """Accept True and False only, since ``0`` or ``"no"`` is usually a mistake."""

    def apply(name: str, value: object) -> bool:
        if not isinstance(value, bool):
            truth = (
                value not in (0, "0", "false", "False", "no", "off")
                if isinstance(value, (int, str))
                else None
            )
            raise reject(name, value, "True or False", truth)
        return value

    return Check("True, False", apply)


def flag_or(word: str) -> Check:
    """Accept True, False or one word."""
    expected = f"True, False, {word!r}"

    def apply(name: str, value: object) -> bool | str:
        if isinstance(value, bool) or value == word:
            return value  # type: ignore[return-value]
        raise reject(name, value, f"True, False or {word!r}", word)

    return Check(expected, apply)


def choice(*valid: str) -> Check:
    """Accept one of the given words."""
    listed = ", ".join(repr(word) for word in valid)

    def apply(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in valid:
            raise reject(name, value, f"one of {listed}", nearest(value, valid))
        return value

    return Check(listed, apply)


def registered(registry: Registry[Any]) -> Check:
    """Accept a name that `registry` holds when the options are made."""
    listed = ", ".join(repr(word) for word in registry)

    def apply(name: str, value: object) -> str:
        registry.find(name, value)
        return str(value)

    return Check(f"{listed} or a registered name", apply)


def registered_names(registry: Registry[Any]) -> Check:
    """Accept a sequence of names that `registry` holds, each once; a single name counts as one of them."""

    def apply(name: str, value: object) -> tuple[str, ...]:
        names = (value,) if isinstance(value, str) else value
        if not isinstance(names, Sequence) or isinstance(names, bytes):
            raise reject(name, value, "a sequence of registered names", ())
        for entry in names:
            registry.find(name, entry)
        if len(set(names)) < len(names):
            raise reject(name, value, "every name once", tuple(dict.fromkeys(names)))
        return tuple(names)

    return Check("sequence of registered names", apply)


def number(low: float, high: float = math.inf, *, optional: bool = False) -> Check:
    """Accept a finite real number in the closed interval, or None if ``optional``; returns a float."""
    expected = f"a number from {low:g} to {high:g}" if high < math.inf else f"a number of at least {low:g}"
    expected += " or None" if optional else ""

    def apply(name: str, value: object) -> float | None:
        if optional and value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise reject(name, value, expected, _clipped(value, low, high))
        result = float(value)
        if not (math.isfinite(result) and low <= result <= high):
            raise reject(name, value, expected, _clipped(value, low, high))
        return result

    return Check(expected.removeprefix("a "), apply)


def speedup(*, optional: bool = False) -> Check:
    """Accept a finite factor above 1, as a number or as a string like ``"2.5x"``; returns a float."""
    expected = "a factor above 1 like '2.5x' or 2.5" + (" or None" if optional else "")

    def apply(name: str, value: object) -> float | None:
        if optional and value is None:
            return None
        given = value.strip().removesuffix("x") if isinstance(value, str) else value
        factor = None if isinstance(given, bool) else _parsed(given)
        if factor is None or not (math.isfinite(factor) and factor > 1):
            raise reject(name, value, expected, "1.1x" if factor is not None and factor <= 1 else None)
        return factor

    return Check(expected.removeprefix("a "), apply)


def integer(
    low: int | None = None, words: Sequence[str] = (), *, high: int | None = None, optional: bool = False
) -> Check:
    """Accept an integer from ``low`` to ``high``, or one of ``words``, or None if ``optional``."""
    expected = "an integer" if low is None else f"an integer of at least {low}"
    if high is not None:
        expected += f" and at most {high}"
    expected = " or ".join([expected, *(repr(word) for word in words), *(["None"] if optional else [])])

    def apply(name: str, value: object) -> int | str | None:
        if (value is None and optional) or (isinstance(value, str) and value in words):
            return value
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise reject(name, value, expected, nearest(value, words) or _whole(value, low))
        if low is not None and value < low:
            raise reject(name, value, expected, low)
        if high is not None and int(value) > high:
            raise reject(name, value, expected, high)
        return int(value)

    return Check(expected.removeprefix("an "), apply)


def text(*, optional: bool = False) -> Check:
    """Accept a non-empty string, or None if ``optional``."""
    expected = "a non-empty string" + (" or None" if optional else "")

    def apply(name: str, value: object) -> str | None:
        if (value is None and optional) or (isinstance(value, str) and value):
            return value
        raise reject(name, value, expected)

    return Check(expected.removeprefix("a "), apply)


def layer_list(*words: str) -> Check:
    """Accept one of ``words`` or a non-empty sequence of layer indices (negative: from the end)."""
    expected = " or ".join([*(repr(word) for word in words), "a sequence of layer indices"])

    def apply(name: str, value: object) -> str | tuple[int, ...]:
        if isinstance(value, str):
            if value not in words:
                raise reject(name, value, expected, nearest(value, words))
            return value
        if not isinstance(value, Sequence) or not value:
            raise reject(name, value, expected, words[0] if words else None)
        return tuple(int(integer().apply(name, layer)) for layer in value)

    return Check(expected, apply)


def ratios(*, optional: bool = False, ascending: bool = False) -> Check:
    """Accept a non-empty sequence of numbers from 0 to 1; ``ascending``: growing ones above 0, 1 is added."""
    expected = ("strictly ascending numbers above 0 up to 1" if ascending else "numbers from 0 to 1") + (
        " or None" if optional else ""
    )

    def apply(name: str, value: object) -> tuple[float, ...] | None:
        if value is None and optional:
            return None
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise reject(name, value, f"a non-empty sequence of {expected}")
        result = tuple(float(number(0, 1).apply(name, ratio)) for ratio in value)
        if ascending and (result[0] <= 0 or any(a >= b for a, b in pairwise(result))):
            tidy = tuple(sorted({ratio for ratio in result if ratio > 0})) or (1.0,)
            raise reject(name, value, f"a non-empty sequence of {expected}", tidy)
        return (*result, 1.0) if ascending and result[-1] < 1 else result

    return Check(f"sequence of {expected}", apply)


def keep_ratios() -> Check:
    """Accept ``{scale: ratio}`` or ``{scale: {layer: ratio}}``, as mapping or pairs; empty becomes None."""
    expected = "{scale: ratio}, {scale: {layer: ratio}} or None"

    def apply(name: str, value: object) -> KeepRatios | None:
        if value is None:
            return None
        scales = []
        for scale, ratio in _pairs(name, value, expected):
            label = f"{name}[{scale}]"
            if isinstance(ratio, (Mapping, tuple, list)):
                layers = _pairs(label, ratio, "{layer: ratio}")
                if not layers:
                    raise reject(label, ratio, "at least one {layer: ratio}")
                scales.append(
                    (
                        scale,
                        tuple(
                            (layer, number(0, 1).apply(f"{label}[{layer}]", part)) for layer, part in layers
                        ),
                    )
                )
            else:
                scales.append((scale, number(0, 1).apply(label, ratio)))
        return tuple(scales) or None

    return Check(expected, apply)


def _pairs(name: str, value: object, expected: str) -> list[tuple[int, object]]:
    items = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(items, (tuple, list)) or any(
        not isinstance(p, (tuple, list)) or len(p) != 2 for p in items
    ):
        raise reject(name, value, expected)
    indexed: dict[int, object] = {}
    for key, entry in items:
        # JSON objects have string keys only.
        index = int(key) if isinstance(key, str) and key.removeprefix("-").isdecimal() else key
        if isinstance(index, bool) or not isinstance(index, numbers.Integral):
            raise reject(name, value, f"{expected} with integer indices, not {shown(key)}", _whole(key, None))
        if int(index) in indexed:
            raise reject(name, value, f"{expected} with every index once, not {index} twice")
        indexed[int(index)] = entry
    return sorted(indexed.items())


def _parsed(value: object) -> float | None:
    if not isinstance(value, (str, numbers.Real)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _clipped(value: object, low: float, high: float) -> float | None:
    parsed = _parsed(value)
    if parsed is None or math.isnan(parsed):
        return None
    nearest_value = min(max(parsed, low), high)
    return nearest_value if math.isfinite(nearest_value) else None


def _whole(value: object, low: int | None) -> int | None:
    parsed = _parsed(value)
    if parsed is None or not math.isfinite(parsed):
        return None
    return round(parsed) if low is None else max(round(parsed), low)
