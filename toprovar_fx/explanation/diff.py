"""Two texts as one piece of HTML: lines added and removed are marked, long equal runs fold away."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from itertools import groupby

CONTEXT = 3
_TOKENS = re.compile(r"\w+|\s+|[^\w\s]")
_SHAPE = re.compile(r"^(\s*\w+)(: [^=]+?)(,?| = .*)$")


@dataclass(frozen=True)
class Diff:
    """A rendered comparison.

    Attributes:
        html: the lines.
        added, removed: how many of them changed.
    """

    html: str
    added: int
    removed: int


def diff(before: str, after: str) -> Diff:
    """Compare two texts line by line; lines that differ in a shape alone stay side by side."""
    old, new = before.splitlines(), after.splitlines()
    lines: list[tuple[str, str]] = []
    for kind, start, end, new_start, new_end in _aligned(old, new):
        if kind == "equal":
            for left, right in zip(old[start:end], new[new_start:new_end], strict=True):
                lines += [("", left)] if left == right else _pair(left, right)
        else:
            lines += _changed(old[start:end], new[new_start:new_end])
    runs = [(kind, list(run)) for kind, run in groupby(lines, key=lambda line: line[0] == "")]
    parts: list[str] = []
    for at, (same, run) in enumerate(runs):
        texts = [html for _, html in run]
        if same:
            parts += _unchanged(texts, first=at == 0, last=at == len(runs) - 1)
        else:
            parts += [f'<div class="l {kind}">{html}</div>' for kind, html in run]
    return Diff("".join(parts), sum(k == "a" for k, _ in lines), sum(k == "d" for k, _ in lines))


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> list[tuple[str, Diff]]:
    """Compare texts by title; one that is new is compared with the most similar one of before.

    Returns:
        Titles and comparisons, those without a change left out.
    """
    found, taken = [], set()
    for title, text in after.items():
        base = title if title in before else _nearest(text, before)
        taken.add(base)
        if base is None or before[base] != text:
            heading = title if base in (None, title) else f"{title}; compared with: {base}"
            found.append((heading, diff("" if base is None else before[base], text)))
    found += [(title, diff(text, "")) for title, text in before.items() if title not in (*after, *taken)]
    return found


def _nearest(text: str, known: Mapping[str, str]) -> str | None:
    """The title whose text shares at least a third of its lines with `text`, shapes aside."""
    lines = {_key(line) for line in text.splitlines()}
    shares = {}
    for title, other in known.items():
        others = {_key(line) for line in other.splitlines()}
        shares[title] = len(lines & others) / max(len(lines | others), 1)
    best = max(shares, key=lambda title: shares[title], default=None)
    return best if best is not None and shares[best] > 1 / 3 else None


def _aligned(old: Sequence[str], new: Sequence[str]) -> Sequence[tuple[str, int, int, int, int]]:
    left, right = [_key(line) for line in old], [_key(line) for line in new]
    return SequenceMatcher(None, left, right, autojunk=False).get_opcodes()


def _key(line: str) -> str:
    """A line without its shape."""
    shape = _SHAPE.match(line)
    return line if shape is None else shape[1] + shape[3]


def _unchanged(lines: Sequence[str], *, first: bool, last: bool) -> Iterator[str]:
    """Equal lines, all but a few next to the changes in a fold."""
    head, tail = (0 if first else CONTEXT), (0 if last else CONTEXT)
    hidden = len(lines) - head - tail
    if hidden <= CONTEXT:
        yield from map(_line, lines)
        return
    yield from map(_line, lines[:head])
    yield f"<details><summary>{hidden} unchanged lines</summary>"
    yield from map(_line, lines[head : head + hidden])
    yield "</details>"
    yield from map(_line, lines[head + hidden :])


def _changed(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Removed and added lines; equally many are compared in pairs, word by word."""
    if len(old) != len(new):
        yield from (("d", _coloured(text)) for text in old)
        yield from (("a", _coloured(text)) for text in new)
        return
    pairs = [_words(left, right) for left, right in zip(old, new, strict=True)]
    yield from (("d", left) for left, _ in pairs)
    yield from (("a", right) for _, right in pairs)


def _pair(left: str, right: str) -> list[tuple[str, str]]:
    old, new = _words(left, right)
    return [("d", old), ("a", new)]


def _words(left: str, right: str) -> tuple[str, str]:
    """Both lines with the words between their common start and common end marked."""
    old, new = _TOKENS.findall(left), _TOKENS.findall(right)
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    if not start and not end:
        return escape(left), escape(right)
    return _marked(old, start, end), _marked(new, start, end)


def _marked(tokens: Sequence[str], start: int, end: int) -> str:
    stop = len(tokens) - end
    head, middle, tail = tokens[:start], tokens[start:stop], tokens[stop:]
    inner = f"<mark>{escape(''.join(middle))}</mark>" if middle else ""
    return escape("".join(head)) + inner + escape("".join(tail))


def _line(text: str) -> str:
    return f'<div class="l">{_coloured(text)}</div>'


def _coloured(text: str) -> str:
    """Comments and shapes in colours of their own."""
    if text.lstrip().startswith("#"):
        return f'<i class="c">{escape(text)}</i>'
    shape = _SHAPE.match(text)
    if shape is None:
        return escape(text)
    name, annotation, rest = (escape(part) for part in shape.groups())
    return f'{name}<i class="t">{annotation}</i>{rest}'
