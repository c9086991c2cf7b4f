from __future__ import annotations

import gc
import math

import pytest
import torch

from toprovar_fx.evaluation import timing
from toprovar_fx.evaluation.timing import Timing
from toprovar_fx.stopwatch import Stopwatch


class Clock:
    """A clock that only the timed calls move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def taking(self, *seconds: float) -> Call:
        return Call(self, list(seconds))


class Call:
    def __init__(self, clock: Clock, seconds: list[float]) -> None:
        self.clock, self.seconds, self.count = clock, seconds, 0

    def __call__(self) -> None:
        self.clock.now += self.seconds[min(self.count, len(self.seconds) - 1)]
        self.count += 1


def test_first_call_warmup_and_rounds_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    order: list[str] = []
    times = timing.interleave(
        {"slow": clock.taking(10.0, 5.0, 2.0, 4.0, 3.0), "fast": clock.taking(1.0)},
        rounds=3,
        on_call=order.append,
    )
    assert times["slow"] == Timing(10.0, (2.0, 4.0, 3.0))
    assert times["slow"].median_s == 3.0
    assert times["slow"].compile_s == 7.0
    assert times["fast"].compile_s == 0.0
    assert order[4:] == ["slow", "fast", "fast", "slow", "slow", "fast"]
    assert len(order) == timing.calls(2, 3)


def test_a_round_of_short_calls_begins_with_one_that_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    cold, short = clock.taking(1.0, 0.02, 0.03, 0.01, 0.01, 0.03, 0.01), clock.taking(0.01)
    told: list[str] = []
    times = timing.interleave({"first": cold, "last": short}, rounds=3, on_call=told.append)
    assert times["first"].seconds == pytest.approx((0.01, 0.01, 0.01)) and len(told) == timing.calls(2, 3)
    assert (cold.count, short.count) == (2 + 3 + 2, 2 + 3 + 1), "the second round begins with the other"


def test_a_heap_is_settled_though_python_froze_some_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("freeze", "unfreeze"):
        monkeypatch.setattr(gc, name, lambda name=name: done.append(name))
    for frozen, expected in ((375, ["freeze", "unfreeze"]), (100_000, [])):
        monkeypatch.setattr(gc, "get_freeze_count", lambda frozen=frozen: frozen)
        timing.interleave({"one": lambda: None}, rounds=1)
        assert done == expected
        done.clear()


def test_the_speedup_is_paired_by_round() -> None:
    # A machine that slows down threefold halfway changes both, and the ratio stays.
    dense, pruned = Timing(9.0, (2.0, 2.0, 6.0, 6.0)), Timing(9.0, (1.0, 1.0, 3.0, 3.0))
    assert pruned.speedup_over(dense) == 2.0
    assert dense.speedup_over(pruned) == 0.5


def test_spread() -> None:
    assert Timing(1.0, (2.0,)).spread == 0.0
    assert Timing(1.0, (1.0, 2.0, 3.0)).spread == 0.25


def test_no_round_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        timing.interleave({}, rounds=0)


def test_a_stopwatch_waits_for_its_own_events_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """To wait for the whole device would break a graph that another thread records."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.over = False

        def record(self, stream: object) -> None:
            pass

        def synchronize(self) -> None:
            self.over = True

        def elapsed_time(self, later: Event) -> float:
            assert self.over and later.over
            return 1.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("it waits for the device"))
    watch = Stopwatch(torch.device("cuda", 0))
    watch.lap("text")
    watch.lap("scales")
    assert watch.milliseconds() == {"text": 1.5, "scales": 1.5, "total": 3.0}


@pytest.mark.parametrize(
    ("count", "low", "high"), [(1, 1, 1), (5, 1, 5), (6, 1, 6), (9, 2, 8), (20, 6, 15), (121, 50, 72)]
)
def test_the_interval_of_a_median_lies_between_the_tabled_order_statistics(count, low, high):
    """The ranks of the sign test at 5%: 9 draws leave out one at either end, 20 leave out five."""
    values = [float(rank) for rank in range(1, count + 1)]
    assert timing.median_interval(values[::-1]) == (low, high)


def test_the_interval_of_a_median_holds_it_in_95_of_100_samples():
    draws = torch.empty(2000, 25, dtype=torch.float64).exponential_()
    found = [timing.median_interval(sample) for sample in draws.tolist()]
    held = sum(low <= math.log(2) <= high for low, high in found) / len(found)
    assert 0.95 <= held < 0.97
