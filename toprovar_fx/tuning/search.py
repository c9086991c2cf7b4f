"""The search: points at one budget, judged on the split "tune", the best one reported on "test"."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OptionError
from ..evaluation.study import PairedStudy, judges
from .pricing import Pricer
from .space import Point
from .trials import Journal, Judged, finished, judged, open_trials

if TYPE_CHECKING:
    import optuna

    from ..pipeline import InfinityPipeline

# SceneEval is coarse: of points that score alike the one nearer to the dense images is better. 1 dB counts
# as much as one prompt in a thousand.
SCORE_PER_DB = 1e-3


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        options: of the best point.
        target: dense FLOPs over its FLOPs that was asked for.
        tune: the best point on the split "tune", as `PairedStudy.score` reports it.
        test: the same point on the split "test".
        trials: every point that was judged: options, score change with standard error, PSNR, FLOPs share.
    """

    options: Mapping[str, object]
    target: float
    tune: Mapping[str, Any]
    test: Mapping[str, Any]
    trials: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Effort:
    """How much is spent.

    Attributes:
        trials: points to try, those of a journal included.
        n: prompts per point.
        test_n: prompts of the final report.
        batch: images drawn together.
        seconds: no further point is begun after this time.
        workers: judging processes, of every drawing one.
        seed: of the sampler.
        processes: processes that draw.
    """

    trials: int = 30
    n: int = 300
    test_n: int = 1200
    batch: int = 50
    seconds: float = float("inf")
    workers: int = 2
    seed: int = 0
    processes: int = 1


def tune(
    pipe: InfinityPipeline,
    target: float,
    effort: Effort = Effort(),
    tried: Callable[[str], None] = lambda text: None,
    journal: Journal | None = None,
    again: Callable[[], InfinityPipeline] | None = None,
) -> Tuned:
    """Search the options with the best quality at `target` times fewer FLOPs of the transformer.

    Args:
        pipe: a pipeline whose transformer is not compiled.
        target: dense FLOPs over pruned FLOPs, above 1.
        effort: see `Effort`.
        tried: told after every point.
        journal: where the points are kept; those that are there count as tried.
        again: makes the pipeline once more in another process; needed for several.

    Raises:
        OptionError: a target that no point of the space reaches, a package that is missing, a journal of
            another search, or several processes without a journal.
    """
    if effort.processes > 1 and (journal is None or again is None):
        raise OptionError(f"processes={effort.processes}: expected 1 without a journal that they can share")
    # Of the wall clock, which all processes share.
    until = time.time() + effort.seconds
    search = open_trials(journal, effort.seed)
    with (
        _helpers(target, effort, until, journal, again),
        judges(effort.workers) as pool,
        torch.inference_mode(),
    ):
        _try_points(pipe, target, effort, search, pool, until, tried)
    found = judged(search)
    if not found:
        raise OptionError(
            f"target={target:g}: no setting of the search space is that much cheaper than dense"
        )
    best = max(found, key=lambda one: one.value)
    with judges(effort.workers) as pool, torch.inference_mode():
        test = PairedStudy(pipe, effort.test_n, "test", effort.batch, pool).score(best.options)
    return Tuned(best.options, target, best.row, _whole(test), [_brief(one) for one in found])


def _try_points(
    pipe: InfinityPipeline,
    target: float,
    effort: Effort,
    search: optuna.Study,
    pool: ProcessPoolExecutor,
    until: float,
    tried: Callable[[str], None] = lambda text: None,
) -> None:
    """Draw and judge points until all processes together have tried enough, or time is up."""
    from optuna.trial import TrialState

    told = finished(search)
    if told >= effort.trials:
        return
    study = PairedStudy(pipe, effort.n, "tune", effort.batch, pool)
    pricer = Pricer(pipe, study.prompts[0].text)
    # One point is judged in any case.
    begun = False
    while finished(search) < effort.trials and (time.time() < until or not begun):
        begun = True
        trial = search.ask()
        point = Point.suggested(trial)
        factor = pricer.factor(point, target)
        if factor is None:
            search.tell(trial, state=TrialState.PRUNED)
            said = "dearer than the budget at the least shares"
        else:
            row = _whole(study.score(point.options(factor)))
            trial.set_user_attr("factor", factor)
            trial.set_user_attr("row", row)
            search.tell(trial, row["change"] + SCORE_PER_DB * (row["psnr_db"] or 0.0))
            said = f"{row['change']:+.3f}, {row['flops_share']:.0%} of FLOPs"
        for _ in range(finished(search) - told):
            tried(said)
        told = finished(search)


@contextmanager
def _helpers(
    target: float,
    effort: Effort,
    until: float,
    journal: Journal | None,
    again: Callable[[], InfinityPipeline] | None,
) -> Iterator[None]:
    """Processes that try points of the same journal beside this one; their errors are raised at the end."""
    if effort.processes == 1 or journal is None or again is None:
        yield
        return
    with ProcessPoolExecutor(effort.processes - 1, mp_context=get_context("spawn")) as pool:
        helping = [
            pool.submit(_help, target, effort, until, journal, again, worker)
            for worker in range(1, effort.processes)
        ]
        yield
        for one in helping:
            one.result()


def _help(
    target: float,
    effort: Effort,
    until: float,
    journal: Journal,
    again: Callable[[], InfinityPipeline],
    worker: int,
) -> None:
    pipe = again()
    search = open_trials(journal, effort.seed, worker)
    with judges(effort.workers) as pool, torch.inference_mode():
        _try_points(pipe, target, effort, search, pool, until)


def _whole(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """All figures but the verdict on every image."""
    return {name: value for name, value in row.items() if name != "passed"}


def _brief(one: Judged) -> Mapping[str, Any]:
    kept = ("overall", "change", "change_se", "psnr_db", "flops_share")
    return {"options": dict(one.options), **{name: one.row[name] for name in kept}}
