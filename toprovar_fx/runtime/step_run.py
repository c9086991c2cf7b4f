"""Runs a decided step: works out its added inputs, and replays its recording where it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..lowering.joined_layers import Extra
from ..lowering.region import Region
from .controller import Controller
from .cuda_graphs import GraphedCall, GraphMemory
from .step_plan import Pattern, StepPlan
from .telling import Telling


@dataclass(frozen=True)
class Ran:
    """A plan that was run.

    Attributes:
        plan: it.
        chosen: the keep sets [R, K] that it got, by layer.
        values: what its graph returned.
    """

    plan: StepPlan
    chosen: Mapping[int, Tensor]
    values: Sequence[Any]

    @property
    def told(self) -> Sequence[Tensor]:
        """What the step worked out besides, in the order of `Telling`."""
        joined = self.plan.pattern.joined
        return self.values[joined.returned :]


class StepRuns:
    """Runs the plans of one step.

    Args:
        memory: of the step's recordings; None where nothing is recorded.
    """

    def __init__(self, memory: GraphMemory | None) -> None:
        self._memory = memory
        self._graphed: dict[tuple[Region, Telling | None], GraphedCall] = {}

    def __call__(
        self, plan: StepPlan, controller: Controller, arguments: tuple[Any, ...], hidden: Tensor
    ) -> Ran:
        """Run a plan.

        Args:
            plan: of the scale that is about to run.
            controller: of the generation.
            arguments: of the step.
            hidden: a tensor of the shape, dtype and device of the hidden state.
        """
        chosen = plan.keeps if plan.keeps is not None else controller.keep_sets(plan.chosen, hidden)
        extras = [_value(extra, controller, plan, chosen) for extra in plan.pattern.joined.extras]
        return Ran(plan, chosen, self._call(plan, (*arguments, *extras), controller))

    def replays(self, plan: StepPlan) -> bool:
        """Whether a plan was recorded, so that running it twice leaves what running it once does."""
        graphed = self._graphed.get((plan.pattern.region, plan.telling))
        return graphed is not None and graphed.recorded

    def _call(self, plan: StepPlan, arguments: tuple[Any, ...], controller: Controller) -> Sequence[Any]:
        pattern, telling = plan.pattern, plan.telling
        if self._memory is None:
            return pattern.call(*arguments)  # type: ignore[no-any-return]
        call: Callable[..., Any] = pattern.call
        more: tuple[str, ...] = ()
        if telling is not None:
            call = partial(_and_tell, pattern, telling)
            more = ("told_detail",) if telling.takes_detail else ()
        graphed = self._graphed.get((pattern.region, telling))
        if graphed is None:
            made = GraphedCall(pattern.region, self._memory, more)
            graphed = self._graphed[pattern.region, telling] = made
        if more:
            arguments = *arguments, controller.foretelling.detail
        return graphed(call, arguments, partial(controller.ledger.note, controller.scale))


def _and_tell(pattern: Pattern, telling: Telling, *arguments: Any) -> tuple[Any, ...]:
    """What the step returns, and what is told of the maps among it."""
    detail = arguments[-1] if telling.takes_detail else None
    values = tuple(pattern.call(*(arguments[:-1] if telling.takes_detail else arguments)))
    joined = pattern.joined
    maps = dict(zip(joined.maps, values[joined.results :], strict=False))
    return *values, *telling(maps, detail)


def _value(extra: Extra, controller: Controller, plan: StepPlan, chosen: Mapping[int, Tensor]) -> Any:
    """The argument of one added input."""
    values: dict[str, Callable[[], Any]] = {
        "offset": lambda: plan.groups[extra.at].place.offset,
        "count": lambda: plan.groups[extra.at].count,
        "images": lambda: controller.images,
        "keep": lambda: chosen[extra.at],
        "map": lambda: controller.map_of(extra.at),
        "restored": lambda: controller.restored(extra.at),
    }
    return values[extra.kind]()
