"""Scale schedules: the sides of the token maps that a model predicts one after another."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from .errors import ScheduleError, nearest

Side = tuple[int, int]

# Number of scales of Infinity's four pixel budgets; a smaller budget runs the first scales of the largest.
INFINITY_BUDGETS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}

# Infinity's token maps (height x width) for height / width >= 1; those below 1 are the same maps transposed.
# Checkpoints were trained on exactly these, so the table is part of the model format.
_INFINITY_MAPS = {
    1.0: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    1.25: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.5: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.75: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.0: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.5: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.0: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}
_NAMED_SIDES = {"scenes": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)}


@dataclass(frozen=True)
class Schedule:
    """Sides of the token maps, coarse to fine.

    Attributes:
        sides: (height, width) in tokens of each of the ``S`` scales; the first is ``(1, 1)``.
        grid: (height, width) of the common grid on which position tables place every scale; None leaves it to
            the model (``InfinityConfig.rope_grid``). Infinity uses the largest map of the ratio for every
            pixel budget.

    Both may be given as lists.

    Raises:
        ScheduleError: no scale, sides that are no pairs of integers above 0, a first map that is not 1 x 1,
            or maps that shrink.
    """

    sides: tuple[Side, ...]
    grid: Side | None = None

    def __post_init__(self) -> None:
        """Check the sides."""
        if not isinstance(self.sides, (tuple, list)):
            raise ScheduleError(f"schedule {self.sides!r}: expected (height, width) of every scale")
        object.__setattr__(self, "sides", tuple(map(_side, self.sides)))
        if self.grid is not None:
            object.__setattr__(self, "grid", _side(self.grid))
        if not self.sides or self.sides[0] != (1, 1):
            raise ScheduleError(f"schedule {self.sides}: expected at least one scale, the first being (1, 1)")
        for before, after in zip(self.sides, self.sides[1:], strict=False):
            if after[0] < before[0] or after[1] < before[1]:
                raise ScheduleError(f"schedule {self.sides}: {after} after {before}, expected growing sides")

    @classmethod
    def named(cls, name: str) -> Schedule:
        """Return the schedule of a shipped model, such as ``"scenes"``.

        Raises:
            ScheduleError: there is none of this name.
        """
        if not isinstance(name, str) or name not in _NAMED_SIDES:
            close = nearest(str(name), _NAMED_SIDES)
            hint = f"; did you mean {close!r}?" if close else ""
            raise ScheduleError(f"unknown schedule {name!r}: expected one of {sorted(_NAMED_SIDES)}{hint}")
        return cls(tuple((side, side) for side in _NAMED_SIDES[name]))

    @classmethod
    def infinity(cls, budget: str = "1M", h_div_w: float = 1.0) -> Schedule:
        """Return an official Infinity schedule.

        Args:
            budget: pixels: ``"0.06M"``, ``"0.25M"``, ``"0.60M"`` or ``"1M"``.
            h_div_w: height / width; one of ``infinity_ratios()``, matched to within 0.005.

        Raises:
            ScheduleError: unknown budget or ratio; the message names the valid ones.
        """
        if not isinstance(budget, str) or budget not in INFINITY_BUDGETS:
            raise ScheduleError(f"unknown pixel budget {budget!r}: expected one of {list(INFINITY_BUDGETS)}")
        ratios = infinity_ratios()
        if not isinstance(h_div_w, (int, float)):
            raise ScheduleError(f"h_div_w={h_div_w!r}: expected height / width, a number")
        ratio = min(ratios, key=lambda known: abs(known - h_div_w))
        if not abs(ratio - h_div_w) <= 0.005:
            valid = ", ".join(f"{known:g}" for known in ratios)
            raise ScheduleError(
                f"no schedule for h_div_w={h_div_w:g}: expected one of {valid}; nearest is {ratio:g}"
            )
        sides = _infinity_sides(ratio)
        return cls(sides[: INFINITY_BUDGETS[budget]], grid=sides[-1])

    def __len__(self) -> int:
        """Return ``S``, the number of scales."""
        return len(self.sides)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(height * width for height, width in self.sides)

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens of all scales up to and including each one; the last is the length of the K/V cache."""
        return tuple(accumulate(self.tokens))

    @property
    def tokens_before_last(self) -> int:
        """Tokens of all scales but the last, which alone a later scale reads from the K/V cache."""
        return self.ends[-1] - self.tokens[-1]

    @property
    def h_div_w(self) -> float:
        """Height / width of the last map."""
        height, width = self.sides[-1]
        return height / width

    def first(self, scales: int) -> Schedule:
        """Return the schedule of the first ``scales`` scales, on the same position grid."""
        if not isinstance(scales, int) or not 1 <= scales <= len(self):
            raise ScheduleError(f"{scales!r} scales of a schedule of {len(self)}: expected 1 .. {len(self)}")
        return Schedule(self.sides[:scales], grid=self.grid)


def _side(given: object) -> Side:
    """Check one map's (height, width).

    Raises:
        ScheduleError: it is no pair of integers above 0.
    """
    if isinstance(given, (tuple, list)) and len(given) == 2:
        height, width = given
        whole = all(isinstance(side, int) and not isinstance(side, bool) for side in given)
        if whole and height > 0 and width > 0:
            return height, width
    raise ScheduleError(f"side {given!r} of a schedule: expected (height, width), integers above 0")


def infinity_ratios() -> tuple[float, ...]:
    """Return the ratios height / width of the official schedules, ascending (three decimals, cut off)."""
    wide = (int(1000 / ratio) / 1000 for ratio in _INFINITY_MAPS if ratio > 1)
    return tuple(sorted([*_INFINITY_MAPS, *wide]))


def _infinity_sides(ratio: float) -> tuple[Side, ...]:
    """Return the thirteen maps of a ratio out of ``infinity_ratios()``."""
    tall = min(_INFINITY_MAPS, key=lambda known: abs(known - max(ratio, 1 / ratio)))
    maps = [tuple(map(int, entry.split("x"))) for entry in _INFINITY_MAPS[tall].split()]
    return tuple((height, width) if ratio >= 1 else (width, height) for height, width in maps)
