"""Small pieces of HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

# Also signed, in percent, in scientific form, with an interval; - where it is not known, equal where endless.
NUMBER = re.compile(r"-|equal|[+-]?\d+(\.\d+)?(e[+-]\d+)?( ± \d+(\.\d+)?)?%?")
# Characters from which a cell is text to read, not a name or a figure.
PROSE = 40


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of cells that are HTML already; numbers stand to the right, sentences keep a readable width."""
    yield '<div class="wide"><table><thead><tr>'
    kinds = [_kind([row[at] for row in rows]) for at in range(len(columns))]
    yield "".join(f"<th{kind}>{name}</th>" for kind, name in zip(kinds, columns, strict=True))
    yield "</tr></thead><tbody>"
    for row in rows:
        cells = "".join(f"<td{kind}>{text}</td>" for kind, text in zip(kinds, row, strict=True))
        yield f"<tr>{cells}</tr>"
    yield "</tbody></table></div>"


def meter(part: float | None, whole: float | None) -> str:
    """A bar of a share, or nothing where it is not known."""
    if part is None or not whole:
        return ""
    # A scale that also measures entropies costs a little more than dense.
    return f'<span class="meter"><i style="width:{min(1.0, part / whole):.0%}"></i></span>'


def code(value: object) -> str:
    """A value in the code font, - for none."""
    return f"<code>{escape(str(value))}</code>" if value not in ("", None) else "-"


def because(reason: str) -> str:
    """HTML of the guard that failed, the line that needed it, and its file's name.

    Torch writes "guard # line # path in function", and cuts the front of the path in the midst of a name.
    """
    guard, _, rest = reason.partition(" # ")
    line, told, place = rest.rpartition(" # ")
    if not told:
        return escape(reason)
    return f"{code(guard)} for {code(line.strip())}, {escape(place.rpartition('/')[2])}"


def _kind(cells: Sequence[str]) -> str:
    if cells and all(_is_number(cell) for cell in cells):
        return ' class="n"'
    if any(len(cell) > PROSE for cell in cells):
        return ' class="prose"'
    return ""


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None
