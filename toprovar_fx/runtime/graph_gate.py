"""The gate of a layer whose graph decides: the host hands it tensors, and learns the outcome at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..options import Options
from .arms import Arm
from .branching import NOT_PAST, PRUNED, SKIPPED, WHOLE, Branching
from .controller import Controller
from .gates import Gate
from .ledger import Run
from .token_gates import verified
from .verify import PermutationCheck


@dataclass(frozen=True)
class BranchedArm(Arm):
    """The graph of a layer that decides itself (`passes/branch_graph.py`).

    Attributes:
        ranks: the map that ranks is an input.
        keeps: K is an input, and the keep set [R, K] int64 an output.
        rho: the low-entropy ratios, float32 [B] or [R], are an output, of use where the layer ran before D.
    """

    ranks: bool
    keeps: bool
    rho: bool


class GraphGate(Gate):
    """Runs a layer's graph, which decides between whole, K tokens and nothing.

    Args:
        early: what runs at scales that D cannot have reached.
        host: the gates that decide on the host, for generations that have to.
        pruned: the graph of K given tokens, which is checked once and prices that branch; None if no tokens
            are pruned.
        check: the permutation check.
        branched: the graph that decides.
    """

    def __init__(
        self,
        layer: int,
        layers: int,
        options: Options,
        dense: Arm,
        early: nn.Module,
        host: nn.Module,
        pruned: Arm | None,
        check: PermutationCheck,
        branched: BranchedArm,
    ) -> None:
        super().__init__(layer, layers, options, dense)
        self.early, self.host = early, host
        self.pruned, self.check, self.branched = pruned, check, branched

    def forward(self, *inputs: Any) -> Tensor:
        """Run the graph where D may have been reached."""
        controller = self.controller()
        if controller is None or controller.branching is None:
            return self.host(*inputs)
        if not controller.prunes(self.layer):
            return self.early(*inputs)
        return self._run(controller, controller.branching, inputs)

    def _run(self, controller: Controller, branching: Branching, inputs: tuple[Any, ...]) -> Tensor:
        hidden: Tensor = inputs[0]
        device, (rows, length) = hidden.device, hidden.shape[:2]
        update = controller.left.restored(self.layer)
        extra: list[Any] = []
        start = self.dense.begin(inputs)
        if start is not None:
            extra += [branching.filled(self.layer, start, device), start]
        extra.append(branching.best_rho(rows, device))
        if self.branched.ranks:
            extra.append(controller.left.ranking(self.layer))
        extra.append(branching.rate(controller.scale, self.layer, device))
        counts = branching.counts(length)
        may = self.pruned is not None and counts.serves >= 0
        if self.pruned is not None and may:
            may = verified(self, self.check, self.pruned, controller, inputs)
        extra.append(torch.full((), counts.serves if may else -1, dtype=torch.float64, device=device))
        extra += [counts.kept] if self.branched.keeps else []
        extra += [controller.images, *(() if update is None else (update,))]
        controller.caches.hold(self.layer, self.dense.caches(inputs))
        controller.caches.suspect(self.layer)
        found = self.branched.region(*self.branched.arguments(inputs, None, *extra))
        after, branch, missing = found[:3]
        keep = found[3] if self.branched.keeps else None
        if self.branched.rho:
            branching.depth.observe_ratio(found[-1])
        runs = self._runs(controller, inputs, counts.kept, keep, update)
        whole = branching.took(self.layer, missing, branch, runs, keep)
        controller.finish_if(whole, self.layer, hidden, after)
        return after

    def _runs(
        self,
        controller: Controller,
        inputs: tuple[Any, ...],
        kept: int,
        keep: Tensor | None,
        update: Tensor | None,
    ) -> dict[int, Run]:
        """What is written down for each branch."""
        arguments = self.dense.arguments(inputs, self.dense.begin(inputs))
        sizes, length = self.dense.sizes(arguments), inputs[0].shape[1]
        place = {"scale": controller.scale, "layer": self.layer, "tokens": length}
        known = {**place, "dense": self.dense.region, "dense_sizes": sizes}
        whole = {"kept": length, "region": self.dense.region, "sizes": sizes, **known}
        runs = {
            WHOLE: Run(arm="dense", **whole),
            NOT_PAST: Run(arm="tapped" if self.branched.rho else "dense", **whole),
            SKIPPED: Run(arm="skipped", kept=0, region=None, sizes=None, **known),
        }
        if self.pruned is not None and keep is not None:
            given = (keep,) if update is None else (keep, update)
            own = self.pruned.sizes(self.pruned.arguments(inputs, self.dense.begin(inputs), *given))
            runs[PRUNED] = Run(arm="pruned", kept=kept, region=self.pruned.region, sizes=own, **known)
        return runs
