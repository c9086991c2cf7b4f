"""Progress on standard error: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

QUIET_S = 2.0  # work that ends sooner shows nothing
LINE_EVERY_S = 10.0


class Advance(Protocol):
    """What a long loop calls once per finished step."""

    def __call__(self, doing: str = "") -> None:
        """Say that one step is done, and what comes next."""


@contextmanager
def progress(title: str, total: int | None = None, doing: str = "") -> Iterator[Advance]:
    """Show ``title`` and how many of ``total`` steps are done; yields the function that counts a step.

    Args:
        title: what is being done.
        total: number of steps; None shows that work goes on, without an end.
        doing: what the first step does.
    """
    if sys.stderr.isatty():
        with _bar(title, total, doing) as advance:
            yield advance
    else:
        yield _Lines(title, total)


@contextmanager
def _bar(title: str, total: int | None, doing: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30)]
    if total is not None:
        columns.append(MofNCompleteColumn())
    columns += [TimeElapsedColumn(), TextColumn("[dim]{task.fields[doing]}")]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, doing=doing)

        def advance(doing: str = "") -> None:
            bar.update(task, advance=1, doing=doing)

        yield advance


class _Lines:
    """A line when two seconds have passed, then one every ten: readable in a log."""

    def __init__(self, title: str, total: int | None) -> None:
        self.title, self.total, self.done = title, total, 0
        self.next_line = time.monotonic() + QUIET_S

    def __call__(self, doing: str = "") -> None:
        self.done += 1
        now = time.monotonic()
        if now < self.next_line:
            return
        self.next_line = now + LINE_EVERY_S
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        print(f"toprovar: {self.title} {count}", doing, file=sys.stderr, flush=True)
