"""The token gate of `gate="graph"`: K is known before the layer runs, its graph finds the K tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..policies.layer_plan import LayerPlan
from .arms import Arm
from .controller import Controller
from .gates import offset_at
from .token_gates import TokenGate


class SelectingGate(TokenGate):
    """As `TokenGate`, but the ranking map (or the hidden state) goes in and the keep set comes out.

    Args:
        selecting: gather, block and scatter in one graph, which selects the tokens first.
        selecting_tapped: the same with the entropies of the kept tokens as a second output; None if nobody
            reads them.
    """

    def __init__(self, *args: Any, tapped: Arm | None, selecting: Arm, selecting_tapped: Arm | None) -> None:
        super().__init__(*args, tapped=tapped)
        self.selecting, self.selecting_tapped = selecting, selecting_tapped

    def run_kept(self, controller: Controller, plan: LayerPlan, inputs: tuple[Any, ...]) -> Tensor:
        """Run the `plan.count` tokens that the graph selects."""
        tapped = self.selecting_tapped is not None and controller.taps(self.layer)
        arm = self.selecting_tapped if tapped and self.selecting_tapped is not None else self.selecting
        ranking, update = self._ranking(controller), controller.left.restored(self.layer)
        extra = (*ranking, plan.count, controller.images, *(() if update is None else (update,)))
        arguments = arm.arguments(inputs, offset_at(arm, controller, self.layer, inputs), *extra)
        hidden, *entropy, keep = self.call(controller, arm, inputs, arguments)
        if tapped:
            controller.observe(self.layer, entropy[0], keep, hidden.shape[1])
        return self.close(controller, arm, keep, inputs, arguments, hidden)

    def _ranking(self, controller: Controller) -> tuple[Tensor, ...]:
        """The map [R, L] in nats, or nothing where the graph ranks by the hidden state."""
        if not self.options.scoring.reads_entropy:
            return ()
        ranking = controller.left.ranking(self.layer)
        assert ranking is not None, "a layer without a map keeps all its tokens"
        return (ranking,)
