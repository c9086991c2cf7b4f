"""The gates that compute K of a layer's L tokens, once the permutation check has passed their graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from ..analysis.reasons import Fallback, Reason
from ..errors import GraphError
from ..options import Options
from ..policies.layer_plan import LayerPlan
from .arms import Arm
from .controller import Controller
from .gates import Gate, offset_at
from .verify import PermutationCheck


class GatherGate(Gate, ABC):
    """Base of the gates that compute K tokens, once the permutation check has passed the graph.

    Args:
        whole: what runs where all tokens are kept.
        pruned: gather, block and scatter in one graph, with the keep set as an input.
        check: the permutation check.
    """

    def __init__(
        self,
        layer: int,
        layers: int,
        options: Options,
        dense: Arm,
        whole: nn.Module,
        pruned: Arm,
        check: PermutationCheck,
    ) -> None:
        super().__init__(layer, layers, options, dense)
        self.whole, self.pruned, self.check = whole, pruned, check

    def forward(self, *inputs: Any) -> Tensor:
        """Run the K tokens that the controller wants, or all of them."""
        controller = self.controller()
        if controller is None:
            return self.whole(*inputs)
        plan = controller.plan(self.layer, inputs[0])
        some = plan.count not in (0, inputs[0].shape[1])
        if not self.fires(controller, some and verified(self, self.check, self.pruned, controller, inputs)):
            return self.whole(*inputs)
        return self.run_kept(controller, plan, inputs)

    @abstractmethod
    def run_kept(self, controller: Controller, plan: LayerPlan, inputs: tuple[Any, ...]) -> Tensor:
        """Run K tokens."""

    def close(
        self,
        controller: Controller,
        arm: Arm,
        keep: Tensor,
        inputs: tuple[Any, ...],
        arguments: tuple[Any, ...],
        hidden: Tensor,
    ) -> Tensor:
        """Write down what ran, and which rows went into the cache."""
        whole_cache = self.options.pruned_kv == "keep" or self.options.entropy_source == "same_layer"
        self.note(controller, "pruned", inputs, keep.shape[1], arm, arguments)
        controller.ledger.chosen[controller.scale, self.layer] = keep
        hidden = controller.policy.complete(controller.scale, self.layer, keep, hidden)
        cached = hidden.shape[1] if whole_cache else keep.shape[1]
        controller.finish(self.layer, inputs[0], hidden, cached, whole=False)
        return hidden


def verified(
    gate: Gate, check: PermutationCheck, pruned: Arm, controller: Controller, inputs: tuple[Any, ...]
) -> bool:
    """Whether `pruned` passed the permutation check at the site of `gate`; if not, the reason is kept.

    Raises:
        GraphError: it did not, and the options say `strict`.
    """
    update = controller.left.restored(gate.layer)
    offset = offset_at(gate.dense, controller, gate.layer, inputs)
    found = check.deviation(gate.dense, pruned, inputs, update, offset)
    limit = check.tolerance(inputs[0], pruned)
    if found is not None:
        controller.ledger.deviations[controller.scale, gate.layer] = found
    if found is None or found <= limit:
        return True
    fallback = Fallback(
        Reason.VERIFICATION, detail=f"relative deviation {found:.1e} above {limit:.0e}", layer=gate.layer
    )
    if gate.options.strict:
        raise GraphError(str(fallback))
    controller.ledger.fallbacks.append(fallback)
    return False


class TokenGate(GatherGate):
    """The keep set is known before the layer runs and shared by everything in it.

    Args:
        tapped: as `pruned`, with the entropies of the kept tokens as a second output; None if nobody reads
            them.
    """

    def __init__(self, *args: Any, tapped: Arm | None = None) -> None:
        super().__init__(*args)
        self.tapped = tapped

    def run_kept(self, controller: Controller, plan: LayerPlan, inputs: tuple[Any, ...]) -> Tensor:
        """Run the tokens of `plan.keep`."""
        assert plan.keep is not None
        arm = self.tapped if self.tapped is not None and controller.taps(self.layer) else self.pruned
        update = controller.left.restored(self.layer)
        extra = (plan.keep,) if update is None else (plan.keep, update)
        arguments = arm.arguments(inputs, offset_at(arm, controller, self.layer, inputs), *extra)
        result = self.call(controller, arm, inputs, arguments)
        hidden = result if arm is self.pruned else result[0]
        if arm is self.tapped:
            controller.observe(self.layer, result[1], plan.keep, hidden.shape[1])
        return self.close(controller, arm, plan.keep, inputs, arguments, hidden)


class OwnEntropyGate(GatherGate):
    """The layer ranks its tokens by its own entropies: attention runs whole, what follows it on K tokens.

    Args:
        selecting: the graph that takes K and selects the tokens itself.
    """

    def __init__(self, *args: Any, selecting: Arm) -> None:
        super().__init__(*args)
        self.selecting = selecting

    def run_kept(self, controller: Controller, plan: LayerPlan, inputs: tuple[Any, ...]) -> Tensor:
        """Run the `plan.count` tokens that the graph selects."""
        arm, update = self.selecting, controller.left.restored(self.layer)
        extra = (plan.count, controller.images, *(() if update is None else (update,)))
        arguments = arm.arguments(inputs, offset_at(arm, controller, self.layer, inputs), *extra)
        hidden, entropy, keep = self.call(controller, arm, inputs, arguments)
        controller.observe(self.layer, entropy, None, hidden.shape[1])
        return self.close(controller, arm, keep, inputs, arguments, hidden)
