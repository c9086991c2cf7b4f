"""Sizes of a graph's inputs at a scale that has not run, told from those at scales that have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import sympy

from ..input_specs import OFFSET
from ..schedules import Schedule

Observed = Sequence[tuple[int, Mapping[sympy.Symbol, int]]]


class ScaleSizes:
    """Which size symbols follow the schedule, and how.

    A symbol whose value was the token count, the number of cached rows before a scale or after it, at every
    scale that was seen, follows it; any other is a constant (batch rows, text tokens, cache slots).

    Args:
        schedule: the scales.
        observed: (scale, sizes) of calls that ran dense.
        lengths: symbols known to be the token count.
        constants: symbols known not to depend on the scale.
    """

    def __init__(
        self,
        schedule: Schedule,
        observed: Observed,
        lengths: Collection[object] = (),
        constants: Collection[object] = (),
    ) -> None:
        tokens, ends = schedule.tokens, schedule.ends
        starts = tuple(end - count for end, count in zip(ends, tokens, strict=True))
        self._values: dict[sympy.Symbol, tuple[int, ...]] = {}
        seen: dict[sympy.Symbol, list[tuple[int, int]]] = {}
        for scale, sizes in observed:
            for symbol, value in sizes.items():
                seen.setdefault(symbol, []).append((scale, value))
        for symbol, values in seen.items():
            fixed = (values[-1][1],) * len(schedule)
            if symbol in lengths:
                role = tokens
            elif symbol == OFFSET:
                role = starts
            elif symbol in constants:
                role = fixed
            else:
                fitting = (role for role in (tokens, starts, ends) if all(role[at] == n for at, n in values))
                role = next(fitting, fixed)
            self._values[symbol] = role

    def at(self, scale: int) -> dict[sympy.Symbol, int]:
        """The value of every symbol at a scale, nothing pruned."""
        return {symbol: values[scale] for symbol, values in self._values.items()}
