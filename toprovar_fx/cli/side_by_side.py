"""Processes that compile their variants side by side and are timed one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

from .variants import Variant

Rows = dict[str, Any]


@dataclass(frozen=True)
class _Turns:
    """Shared by the processes: nobody is timed before all have compiled, nor beside another one."""

    compiled: threading.Barrier
    timed: AbstractContextManager[bool]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.compiled.wait()
        with self.timed:
            yield


_turns: _Turns | None = None


def groups_of(variants: Sequence[Variant], processes: int) -> list[list[Variant]]:
    """Deal variants out to at most so many groups; every group also has the baselines, for its ratios."""
    baselines = [variant for variant in variants if variant.options is None]
    others = [variant for variant in variants if variant.options is not None]
    if not others:
        return [baselines]
    return [baselines + others[at::processes] for at in range(min(processes, len(others)))]


def side_by_side(measure: Callable[..., Rows], groups: Sequence[Sequence[Variant]]) -> Rows:
    """Measure every group in a process of its own, and join what they found.

    Args:
        measure: a function of a module, given a group and `turn`, within which it times.
        groups: as of `groups_of`; the baselines' rows are those of the first.

    Returns:
        What `measure` returns, of all groups; the ratios of a row are to baselines of its own process.
    """
    context = get_context("spawn")
    begin = partial(_begin, context.Barrier(len(groups)), context.Lock())
    with ProcessPoolExecutor(len(groups), mp_context=context, initializer=begin) as pool:
        running = [pool.submit(_run, measure, group) for group in groups]
        wait(running)
    broken = [error for part in running if (error := part.exception()) is not None]
    for error in sorted(broken, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # what went wrong first, not that others waited for it
    joined, *parts = [part.result() for part in running]
    for part in parts:
        known = {row["name"] for row in joined["variants"]}
        joined["variants"] += [row for row in part["variants"] if row["name"] not in known]
        joined["left_out"] |= part["left_out"]
        joined["graphs_compiled_while_timing"] += part["graphs_compiled_while_timing"]
        # A group of which nothing ran has none.
        joined["rounds"] = min(joined["rounds"] or part["rounds"], part["rounds"] or joined["rounds"])
    # A baseline for which one process had no time left has its row of another.
    ran = {row["name"] for row in joined["variants"]}
    joined["left_out"] = {name: why for name, why in joined["left_out"].items() if name not in ran}
    return joined


def _begin(compiled: threading.Barrier, timed: AbstractContextManager[bool]) -> None:
    global _turns
    _turns = _Turns(compiled, timed)


def _run(measure: Callable[..., Rows], group: Sequence[Variant]) -> Rows:
    assert _turns is not None
    try:
        return measure(group, turn=_turns)
    except BaseException:
        # Whoever waits for this process would wait for ever.
        _turns.compiled.abort()
        raise
