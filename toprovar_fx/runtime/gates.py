"""The modules that the passes put in place of a block: each answers one question and hands on.

They nest: a depth gate holds an early module (dense, perhaps tapped) and a late one (a layer-skip gate around
a token gate). Without a generation everything runs dense.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from ..analysis.reasons import Fallback, Reason
from ..errors import GraphError
from ..options import Options
from .arms import Arm
from .controller import Controller
from .generation import current_generation
from .layer_plan import LayerPlan
from .ledger import Run
from .verify import PermutationCheck


class Gate(nn.Module):
    """Base of the modules at a site.

    Args:
        layer: 0-based.
        layers: number of layers of the model.
        options: settings; they name the controller.
        dense: the whole block.
    """

    def __init__(self, layer: int, layers: int, options: Options, dense: Arm) -> None:
        super().__init__()
        self.layer, self.layers, self.options, self.dense = layer, layers, options, dense

    def controller(self) -> Controller | None:
        """The controller of the generation that runs, or None."""
        running = current_generation()
        return None if running is None else running.controller(self.options, self.layers)

    def like(self, kind: type[Gate], *modules: nn.Module) -> Gate:
        """Another kind of gate at the same site, around `modules`."""
        return kind(self.layer, self.layers, self.options, self.dense, *modules)

    def fires(self, controller: Controller, yes: bool) -> bool:
        """Write down this gate's answer and return it."""
        controller.ledger.answer(type(self).__name__, self.layer, yes)
        return yes

    def call(
        self, controller: Controller | None, arm: Arm, inputs: tuple[Any, ...], arguments: tuple[Any, ...]
    ) -> Any:
        """Run a graph and show its queries to the cache policy, if there is one."""
        result = arm.region(*arguments)
        if arm.layout is None:
            return result
        *others, queries = result
        if controller is not None:
            controller.observe_queries(self.layer, queries, arm.layout, inputs, arm.begin(inputs))
        return others[0] if len(others) == 1 else tuple(others)

    def note(
        self,
        controller: Controller,
        arm: str,
        inputs: tuple[Any, ...],
        kept: int,
        ran: Arm | None,
        arguments: tuple[Any, ...],
    ) -> None:
        """Write down what ran, and where the layer's keys and values are."""
        controller.caches.hold(self.layer, self.dense.caches(inputs))
        whole = self.dense.arguments(inputs, self.dense.begin(inputs))
        controller.ledger.runs.append(
            Run(
                scale=controller.scale,
                layer=self.layer,
                arm=arm,
                kept=kept,
                tokens=inputs[0].shape[1],
                region=None if ran is None else ran.region,
                sizes=None if ran is None else ran.sizes(arguments),
                dense=self.dense.region,
                dense_sizes=self.dense.sizes(whole),
            )
        )


def offset_at(arm: Arm, controller: Controller | None, layer: int, inputs: tuple[Any, ...]) -> int | None:
    """First cache row to write: the traced one, less what pruning left out before."""
    begin = arm.begin(inputs)
    if begin is None or controller is None:
        return begin
    return controller.offset(layer, begin)


class DenseBlock(Gate):
    """The whole block, at the layer's own place in the cache."""

    def forward(self, *inputs: Any) -> Tensor:
        """Run all tokens; `inputs` are the block's, the hidden state [R, L, C] first."""
        controller = self.controller()
        arguments = self.dense.arguments(inputs, offset_at(self.dense, controller, self.layer, inputs))
        hidden = self.call(controller, self.dense, inputs, arguments)
        if controller is not None:
            self.note(controller, "dense", inputs, hidden.shape[1], self.dense, arguments)
            controller.finish(self.layer, inputs[0], hidden, hidden.shape[1], whole=True)
        return hidden


class EntropyTap(Gate):
    """The whole block, with or without the entropies as a second output."""

    def __init__(
        self, layer: int, layers: int, options: Options, dense: Arm, whole: nn.Module, tapped: Arm
    ) -> None:
        super().__init__(layer, layers, options, dense)
        self.whole, self.tapped = whole, tapped

    def forward(self, *inputs: Any) -> Tensor:
        """Run all tokens and hand the entropies [R, L] to the controller where it wants them."""
        controller = self.controller()
        if controller is None or not self.fires(controller, controller.taps(self.layer)):
            return self.whole(*inputs)
        arguments = self.tapped.arguments(inputs, offset_at(self.tapped, controller, self.layer, inputs))
        hidden, entropy = self.call(controller, self.tapped, inputs, arguments)
        controller.observe(self.layer, entropy, None, hidden.shape[1])
        self.note(controller, "tapped", inputs, hidden.shape[1], self.tapped, arguments)
        controller.finish(self.layer, inputs[0], hidden, hidden.shape[1], whole=True)
        return hidden


class ScaleDepthGate(Gate):
    """Up to the depth the early module runs, after it the late one."""

    def __init__(
        self, layer: int, layers: int, options: Options, dense: Arm, early: nn.Module, late: nn.Module
    ) -> None:
        super().__init__(layer, layers, options, dense)
        self.early, self.late = early, late

    def forward(self, *inputs: Any) -> Tensor:
        """Choose by the scale."""
        controller = self.controller()
        past = controller is not None and self.fires(controller, controller.prunes(self.layer))
        return (self.late if past else self.early)(*inputs)


class LayerSkipGate(Gate):
    """A layer with K = 0 adds its last update, or nothing; any other goes on to `kept`."""

    def __init__(self, layer: int, layers: int, options: Options, dense: Arm, kept: nn.Module) -> None:
        super().__init__(layer, layers, options, dense)
        self.kept = kept

    def forward(self, *inputs: Any) -> Tensor:
        """Skip or run."""
        controller = self.controller()
        if controller is None:
            return self.kept(*inputs)
        if not self.fires(controller, controller.plan(self.layer, inputs[0]).count == 0):
            return self.kept(*inputs)
        update = controller.restored(self.layer)
        # The block's result must not be its input: later code may write to it in place.
        hidden = inputs[0].clone() if update is None else inputs[0] + update
        self.note(controller, "skipped", inputs, 0, None, ())
        controller.finish(self.layer, inputs[0], hidden, 0, whole=False)
        return hidden


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
        controller.ledger.keep_sets[controller.scale, self.layer] = keep
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
    update = controller.restored(gate.layer)
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
        update = controller.restored(self.layer)
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
        arm, update = self.selecting, controller.restored(self.layer)
        extra = (plan.count, controller.images, *(() if update is None else (update,)))
        arguments = arm.arguments(inputs, offset_at(arm, controller, self.layer, inputs), *extra)
        hidden, entropy, keep = self.call(controller, arm, inputs, arguments)
        controller.observe(self.layer, entropy, None, hidden.shape[1])
        return self.close(controller, arm, keep, inputs, arguments, hidden)
