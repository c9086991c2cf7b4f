"""A scale step that is decided: what runs, in which graph, and what to write down once it has run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..lowering.joined_layers import JoinedStep
from ..lowering.region import Region
from .step_account import Account, Places
from .step_decision import LayerDecision
from .telling import Telling
from .token_gates import TokenGate

# Plans that are kept; a generation needs one per scale.
_MOST_PLANS = 256


@dataclass(frozen=True)
class Group:
    """Layers of one K (None where all tokens run) and one place in the cache."""

    count: int | None
    place: Places


@dataclass(frozen=True)
class Pattern:
    """A step for one pattern of variants.

    Attributes:
        joined: its graph, and what the graph takes and returns.
        region: the graph made callable; it tells the sizes, and is compiled only if `call` is it.
        call: what runs.
        unrepeatable: what the step does that may not be done twice, or "".
    """

    joined: JoinedStep
    region: Region
    call: Callable[..., Any]
    unrepeatable: str


@dataclass(frozen=True, eq=False)
class StepPlan:
    """One scale. A plan is itself alone: what it runs as is looked up by it.

    Attributes:
        decisions: one per layer.
        groups: the distinct ones among the layers.
        pattern: what runs.
        account: what to write down.
        telling: what the step works out besides, or None.
        chosen: layers whose keep sets are decided before the scale runs.
        keeps: these keep sets [R, K], where they are the same for all images.
    """

    decisions: Sequence[LayerDecision]
    groups: Sequence[Group]
    pattern: Pattern
    account: Account
    telling: Telling | None
    chosen: tuple[int, ...]
    keeps: Mapping[int, Tensor] | None

    @cached_property
    def pruned(self) -> tuple[TokenGate, ...]:
        """The gates of the layers that compute some tokens."""
        found = (one.site.gather for one in self.decisions if one.arm == "pruned")
        return tuple(gate for gate in found if gate is not None)

    @cached_property
    def pruned_graphs(self) -> tuple[TokenGate, ...]:
        """One of these gates for every graph: layers of equal structure share one."""
        return tuple({id(gate.pruned): gate for gate in self.pruned}.values())


class Plans:
    """The plans of one step by what they follow from: of what was measured, D and K."""

    def __init__(self) -> None:
        self._known: dict[Hashable, StepPlan] = {}

    def find(self, key: Hashable | None) -> StepPlan | None:
        """The plan made for `key`; None for none."""
        plan = None if key is None else self._known.pop(key, None)
        if key is not None and plan is not None:
            self._known[key] = plan  # as the newest
        return plan

    def keep(self, key: Hashable | None, plan: StepPlan) -> None:
        """Keep a plan for who stands here next, in place of the one unused longest."""
        if key is not None:
            self._known[key] = plan
            if len(self._known) > _MOST_PLANS:
                self._known.pop(next(iter(self._known)), None)
