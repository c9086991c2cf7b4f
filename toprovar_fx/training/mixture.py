"""Which kind of step comes next, so that each kind gets its share of the time."""

from __future__ import annotations

from collections.abc import Sequence

from .settings import StepKind


def shares(kinds: Sequence[StepKind], fraction: float) -> list[float]:
    """Time shares at a fraction of the budget: the mean shares, tilted from the beginning to the end."""
    raw = [max(0.0, kind.share + kind.tilt * (1.0 - 2.0 * fraction)) for kind in kinds]
    return [value / sum(raw) for value in raw]


class Mixture:
    """Chooses the kind whose spent time lags most behind its due.

    Step costs are measured once and given here: timing every step would make the host wait for the device.

    Args:
        kinds: the kinds of steps.
        costs: seconds of one step of each kind.
    """

    def __init__(self, kinds: Sequence[StepKind], costs: Sequence[float]) -> None:
        self.kinds = kinds
        self.costs = list(costs)
        self._owed = [0.0] * len(kinds)

    def next(self, fraction: float) -> int:
        """Index of the kind of the next step, at a fraction of the budget."""
        due = shares(self.kinds, fraction)
        chosen = max(range(len(self.kinds)), key=lambda kind: (self._owed[kind], due[kind]))
        # The chosen kind spends its cost, and every kind is owed its share of that time.
        for kind, share in enumerate(due):
            self._owed[kind] += share * self.costs[chosen]
        self._owed[chosen] -= self.costs[chosen]
        return chosen
