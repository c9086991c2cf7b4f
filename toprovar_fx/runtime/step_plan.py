"""A scale step that is decided: what runs, in which graph, and what to write down once it has run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ..lowering.joined_layers import JoinedStep
from ..lowering.region import Region
from .step_account import Account, Places
from .step_decision import LayerDecision

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
    """

    joined: JoinedStep
    region: Region
    call: Callable[..., Any]


@dataclass(frozen=True)
class StepPlan:
    """One scale.

    Attributes:
        decisions: one per layer.
        groups: the distinct ones among the layers.
        pattern: what runs.
        account: what to write down.
        of_this_image: whether it holds tokens that were chosen for the images being drawn.
    """

    decisions: Sequence[LayerDecision]
    groups: Sequence[Group]
    pattern: Pattern
    account: Account
    of_this_image: bool


class Plans:
    """The plans of one step by what they follow from, where nothing that is measured decides."""

    def __init__(self) -> None:
        self._known: dict[Hashable, StepPlan] = {}

    def find(self, key: Hashable | None) -> StepPlan | None:
        """The plan made for `key`; None for none."""
        return None if key is None else self._known.get(key)

    def keep(self, key: Hashable | None, plan: StepPlan) -> None:
        """Keep a plan for the next generation that stands where this one does."""
        if key is not None and not plan.of_this_image and len(self._known) < _MOST_PLANS:
            self._known[key] = plan
