"""Transformers drawn from a grammar of constructs: never a wrong result, never an exception."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from random import Random

import pytest
import torch

from .grammar.judge import Verdict, judge
from .grammar.spec import CaseSpec, all_constructs, constructs_of, expected_dense
from .grammar.strategy import SHALLOW, deal


@dataclass
class Tally:
    """Cases seen so far, and how they were treated."""

    seen: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)

    def add(self, case: CaseSpec, verdict: Verdict) -> None:
        self.seen |= constructs_of(case)
        self.counts["cases"] += 1
        self.counts["blocks"] += verdict.layers
        if case.invalid_layers:
            self.counts["invalid cases"] += 1
            return
        self.counts["valid cases"] += 1
        self.counts["rewritten cases"] += len(verdict.pruned) == verdict.layers
        self.counts["valid blocks"] += verdict.layers
        self.counts["rewritten blocks"] += len(verdict.pruned)
        if len(verdict.pruned) < verdict.layers:
            self.reasons.update({reason.name for found in verdict.reasons.values() for reason in found})
            if not expected_dense(case):
                self.unexpected.append(f"{case}: {verdict.fallbacks[0]}")

    def join(self, other: Tally) -> None:
        self.seen |= other.seen
        self.counts.update(other.counts)
        self.reasons.update(other.reasons)
        self.unexpected.extend(other.unexpected)

    def share(self, what: str) -> float:
        return self.counts[f"rewritten {what}"] / max(1, self.counts[f"valid {what}"])

    def __str__(self) -> str:
        missing = sorted(all_constructs() - self.seen)
        return (
            f"{dict(self.counts)}; rewritten: {self.share('cases'):.0%} of valid cases, "
            f"{self.share('blocks'):.0%} of their blocks; reasons of the others: {dict(self.reasons)}, "
            f"of them {len(self.unexpected)} without a construct that is known to be refused; "
            f"constructs not drawn: {missing or 'none'}"
        )


def judge_all(cases: Sequence[CaseSpec], lowering: str = "eager") -> Tally:
    """Judge drawn models. They are small as they are: a failure is not shrunk."""
    tally = Tally()
    for case in cases:
        try:
            tally.add(case, judge(case, lowering))
        except Exception as error:
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    return tally


def in_processes(cases: Sequence[CaseSpec]) -> Tally:
    """As `judge_all`, on all cores: nearly all of the time is Dynamo's, which traces on one.

    Where pytest itself runs on all cores, here.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return judge_all(cases)
    tally, shares = Tally(), len(cases) // 5
    with ProcessPoolExecutor(
        min(shares, len(os.sched_getaffinity(0))), get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        for found in pool.map(judge_all, [cases[share::shares] for share in range(shares)]):
            tally.join(found)
    return tally


def report(tally: Tally, record_property: Callable[[str, object], None]) -> None:
    record_property("grammar", str(tally))
    print(f"\ngrammar: {tally}")
    for line in tally.unexpected:
        print(f"dense, and not known to be: {line}")


def test_drawn_models(record_property):
    tally = in_processes(list(deal(Random(0), 10, SHALLOW)))
    report(tally, record_property)
    assert tally.share("cases") >= 0.7, str(tally)
    assert len(tally.seen) >= 0.8 * len(all_constructs()), str(tally)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_three_hundred_drawn_models(record_property):
    tally = in_processes([case for start in range(30) for case in deal(Random(start), 10)])
    report(tally, record_property)
    assert tally.share("cases") >= 0.7, str(tally)
    assert tally.seen == all_constructs(), str(tally)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_drawn_models_with_constant_token_counts(record_property):
    drawn = [case for start in range(30, 36) for case in deal(Random(start), 10)]
    tally = in_processes([replace(case, trace="static") for case in drawn])
    report(tally, record_property)
    assert tally.share("cases") >= 0.7, str(tally)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_handful_of_drawn_models_through_inductor(record_property):
    report(judge_all(list(deal(Random(0), 6)), "inductor"), record_property)
