"""The search: points at one budget, judged on the split "tune", the best one reported on "test"."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OptionError
from ..evaluation.study import PairedStudy, judges
from .pricing import Pricer
from .space import Point

if TYPE_CHECKING:
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
        tune, test: the best point on each split, as `PairedStudy.score` reports it.
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
        trials: points to judge.
        n: prompts per point.
        test_n: prompts of the final report.
        batch: images drawn together.
        seconds: no further point is begun after this time.
        workers: judging processes.
        seed: of the sampler.
    """

    trials: int = 30
    n: int = 300
    test_n: int = 1200
    batch: int = 50
    seconds: float = float("inf")
    workers: int = 2
    seed: int = 0


def tune(
    pipe: InfinityPipeline,
    target: float,
    effort: Effort = Effort(),
    tried: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Search the options with the best quality at `target` times fewer FLOPs of the transformer.

    Args:
        pipe: a pipeline whose transformer is not compiled.
        target: dense FLOPs over pruned FLOPs, above 1.
        effort: see `Effort`.
        tried: told after every point.

    Raises:
        OptionError: a target that no point of the space reaches, or a package that is missing.
    """
    try:
        import optuna
    except ImportError as error:
        raise OptionError("tuning needs the package optuna: pip install toprovar-fx[tune]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=effort.seed, n_startup_trials=8)
    )
    started = time.monotonic()
    found: list[tuple[float, Mapping[str, object], Mapping[str, Any]]] = []
    with judges(effort.workers) as pool, torch.inference_mode():
        study = PairedStudy(pipe, effort.n, "tune", effort.batch, pool)
        pricer = Pricer(pipe, study.prompts[0].text)

        def judge(trial: optuna.Trial) -> float:
            point = Point.suggested(trial)
            factor = pricer.factor(point, target)
            if factor is None:
                raise optuna.TrialPruned("dearer than the budget at the least shares")
            options = point.options(factor)
            row = study.score(options)
            value = row["change"] + SCORE_PER_DB * (row["psnr_db"] or 0.0)
            found.append((value, options, row))
            tried(f"{row['change']:+.3f}, {row['flops_share']:.0%} of FLOPs")
            if time.monotonic() - started > effort.seconds:
                search.stop()
            return float(value)

        search.optimize(judge, n_trials=effort.trials)
        if not found:
            raise OptionError(
                f"target={target:g}: no setting of the search space is that much cheaper than dense"
            )
        _, options, row = max(found, key=lambda entry: entry[0])
        test = PairedStudy(pipe, effort.test_n, "test", effort.batch, pool).score(options)
    return Tuned(
        options, target, _whole(row), _whole(test), [_brief(given, judged) for _, given, judged in found]
    )


def _whole(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """All figures but the verdict on every image."""
    return {name: value for name, value in row.items() if name != "passed"}


def _brief(options: Mapping[str, object], row: Mapping[str, Any]) -> Mapping[str, Any]:
    kept = ("overall", "change", "change_se", "psnr_db", "flops_share")
    return {"options": dict(options), **{name: row[name] for name in kept}}
