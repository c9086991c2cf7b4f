"""Keep ratios that meet a budget exactly: the cost model prices a point, bisection solves its factor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..criteria.selection import round_to_bucket
from ..errors import GraphError
from ..live_programs import programs
from ..options import Options
from ..program import StepProgram
from .space import LEAST_SHARE, Point

if TYPE_CHECKING:
    from ..pipeline import InfinityPipeline

# Factors are found to this relative accuracy; FLOPs then lie within a percent of the budget.
ACCURACY = 2e-3


class Pricer:
    """Prices points by the graphs of one pipeline, one trace per way of ranking.

    Args:
        pipe: a pipeline whose transformer is not compiled.
        prompt: any prompt that it can draw.
    """

    def __init__(self, pipe: InfinityPipeline, prompt: str) -> None:
        self._pipe, self._prompt = pipe, prompt
        self._programs: dict[str, StepProgram] = {}

    def speedup(self, point: Point, factor: float) -> float:
        """Dense FLOPs over those of the point at a factor; scales that are not run cost nothing."""
        program = self._program(point)
        schedule = self._pipe.schedule
        kept = {}
        for scale, share in point.shares(factor).items():
            tokens = schedule.tokens[scale]
            count = tokens if share >= 1 else max(2, round_to_bucket(share, tokens, (share,)))
            for site in program.step.sites:
                kept[scale % len(schedule), site.layer] = count
        price = program.price(schedule, kept)
        run = price.scales if point.run_last else price.scales[:-1]
        return sum(cost.flops for cost in price.dense) / sum(cost.flops for cost in run)

    def factor(self, point: Point, target: float) -> float | None:
        """The largest factor at which the point is at least `target` times cheaper than dense, or None."""
        low, high = LEAST_SHARE, 1 / min(weight for weight in point.weights if weight)
        if self.speedup(point, low) < target:
            return None
        if self.speedup(point, high) >= target:
            return high
        while high / low > 1 + ACCURACY:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self.speedup(point, middle) >= target else (low, middle)
        return low

    def _program(self, point: Point) -> StepProgram:
        if point.score not in self._programs:
            options = Options.parse({**point.options(0.5), "lowering": "eager"})
            self._programs[point.score] = _traced(self._pipe, self._prompt, options)
        return self._programs[point.score]


def _traced(pipe: InfinityPipeline, prompt: str, options: Options) -> StepProgram:
    """The program that one generation under `options` makes."""
    from ..backend import toprovar

    eager = pipe.transformer
    torch.compiler.reset()
    given: Any = options.as_dict()
    pipe.transformer = torch.compile(eager, backend=toprovar, options=given)
    try:
        pipe([prompt], seed=0)
    finally:
        pipe.transformer = eager
    found = [program for program in programs(options) if isinstance(program, StepProgram)]
    if not found:
        raise GraphError("the transformer has no graph that could be pruned: there is nothing to tune")
    return found[-1]
