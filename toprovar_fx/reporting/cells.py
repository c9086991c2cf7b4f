"""Numbers as text in the cells of tables, on a page and in a terminal."""

from __future__ import annotations


def number(value: float | None, digits: int, factor: float = 1.0) -> str:
    """A number, - for none."""
    return "-" if value is None else f"{value * factor:.{digits}f}"


def share(value: float | None) -> str:
    """A percentage, - for none."""
    return "-" if value is None else f"{value:.0%}"
