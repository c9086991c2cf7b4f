"""The permutation check: a pruned graph that keeps all tokens in another order must give the dense result.

Keeping all tokens in their order is a weak test: a position table that was not gathered passes it. In a
random order it fails.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..analysis.operators import operator_name
from ..analysis.shapes import value_of
from .arms import Arm

# Largest deviation relative to the result's magnitude; a table that is not gathered deviates by 0.1 and more.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
# A part in less precision than the hidden state: half precision turns differences of 1e-7 into steps of its
# own where a value lies between two.
_INSIDE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}
# Operators that compute in bfloat16 whatever their operands are.
_IN_HALF_PRECISION = frozenset({"packed_attention"})


class PermutationCheck:
    """Checks each pruned graph with real inputs the first time it is to run (or every time).

    Args:
        mode: "once", "always" or "never".
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._known: dict[int, float] = {}
        self._inside: dict[int, float] = {}

    def deviation(
        self,
        dense: Arm,
        pruned: Arm,
        inputs: tuple[Any, ...],
        restored: Tensor | None,
        offset: int | None,
    ) -> float | None:
        """Relative deviation of the permuted run from the dense one; None if nothing is to be checked.

        Both run as traced, on copies of what they write; `offset` is the first cache row of the layer.
        """
        if self._mode == "never":
            return None
        key = id(pruned)
        if key not in self._known or self._mode == "always":
            self._known[key] = _measure(dense, pruned, inputs, restored, offset)
        return self._known[key]

    def known(self, pruned: Arm) -> float | None:
        """The deviation that was found for a graph, or None."""
        return self._known.get(id(pruned))

    def due(self, pruned: Arm) -> bool:
        """Whether `deviation` would measure the graph now."""
        return self._mode == "always" or (self._mode == "once" and id(pruned) not in self._known)

    def tolerance(self, hidden: Tensor, pruned: Arm) -> float:
        """Accepted relative deviation, by the precisions that `pruned` computes in, autocast included."""
        kind = hidden.device.type
        accepted = _TOLERANCE.get(hidden.dtype, 1e-4)
        if torch.is_autocast_enabled(kind):
            accepted = max(accepted, _TOLERANCE.get(torch.get_autocast_dtype(kind), 1e-4))
        key = id(pruned)
        if key not in self._inside:
            self._inside[key] = _tolerance_inside(pruned)
        return max(accepted, self._inside[key])


def _tolerance_inside(pruned: Arm) -> float:
    """What the precisions that the graph itself names allow."""
    graph = pruned.region.graph.graph
    inside = {value.dtype for node in graph.nodes if isinstance(value := value_of(node), Tensor)}
    inside |= {spec.dtype for spec in pruned.region.specs if spec.dtype is not None}
    if any(operator_name(node) in _IN_HALF_PRECISION for node in graph.nodes):
        inside.add(torch.bfloat16)
    return max((_INSIDE.get(dtype, 0.0) for dtype in inside), default=0.0)


def _measure(
    dense: Arm, pruned: Arm, inputs: tuple[Any, ...], restored: Tensor | None, offset: int | None
) -> float:
    hidden: Tensor = inputs[0]
    rows, length = hidden.shape[:2]
    order = torch.Generator().manual_seed(length)
    keep = torch.stack([torch.randperm(length, generator=order) for _ in range(rows)]).to(hidden.device)
    expected = run_on_copies(dense, inputs, offset)
    found = run_on_copies(pruned, inputs, offset, keep, *(() if restored is None else (restored,)))
    scale = expected.abs().amax().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((found - expected).abs().amax() / scale)


def run_on_copies(arm: Arm, inputs: tuple[Any, ...], offset: int | None, *extra: Tensor) -> Tensor:
    """Run the graph as traced on copies of whatever it writes."""
    written = arm.region.written
    own = [
        value.clone() if at in written and isinstance(value, Tensor) else value
        for at, value in enumerate(arm.arguments(inputs, offset, *extra))
    ]
    result = arm.region.graph(*own)
    return result[0] if isinstance(result, tuple) else result
