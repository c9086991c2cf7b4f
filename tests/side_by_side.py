"""Generations of several compiled models in threads that take turns scale by scale."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from .models.subjects import Outcome, Subject, generate

Forward = Callable[..., Any]


class Stepper(threading.Thread):
    """A generation in a thread of its own that waits for its turn before every scale."""

    def __init__(self, subject: Subject, forward: Forward, turns: threading.Barrier) -> None:
        super().__init__()
        self.subject, self.forward, self.turns = subject, forward, turns
        self.outcome: Outcome | None = None

    def run(self) -> None:
        def step(*arguments: Any) -> Any:
            self.turns.wait(60)
            return self.forward(*arguments)

        self.outcome = generate(self.subject, step)


def in_threads(pairs: Sequence[tuple[Subject, Forward]]) -> list[Outcome]:
    """A generation of every (subject, compiled forward), all at the same time."""
    turns = threading.Barrier(len(pairs))
    threads = [Stepper(subject, forward, turns) for subject, forward in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(thread.outcome is not None for thread in threads)
    return [thread.outcome for thread in threads if thread.outcome is not None]
