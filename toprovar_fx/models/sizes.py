"""Checks of a configuration's numbers before modules are made of them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError


def check_whole(values: Mapping[str, Any], **largest: int) -> None:
    """Check that values are whole numbers of at least 1.

    Args:
        values: of a configuration, by name.
        largest: of each that is checked, the largest that it may be.

    Raises:
        OptionError: one of them is not.
    """
    for name, most in largest.items():
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= int(value) <= most:
            raise OptionError(f"{name} {value!r}: expected a whole number in 1 .. {most}")


def check_finite(values: Mapping[str, Any], **largest: float) -> None:
    """Check that values are finite numbers of at least 0, and at most `largest`; arguments as `check_whole`.

    Raises:
        OptionError: one of them is not.
    """
    for name, most in largest.items():
        value = values[name]
        known = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not known or not math.isfinite(value) or not 0 <= value <= most:
            limit = "a finite number of at least 0" if most == math.inf else f"a number in 0 .. {most:g}"
            raise OptionError(f"{name} {value!r}: expected {limit}")
