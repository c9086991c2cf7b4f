"""The modules that the passes put in place of a block: each answers one question and hands on.

They nest: a depth gate holds an early module (dense, perhaps tapped) and a late one (a layer-skip gate around
a token gate). Without a generation everything runs dense.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..options import Options
from .arms import Arm
from .controller import Controller
from .generation import current_generation
from .ledger import Run


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
        update = controller.left.restored(self.layer)
        # The block's result must not be its input: later code may write to it in place.
        hidden = inputs[0].clone() if update is None else inputs[0] + update
        self.note(controller, "skipped", inputs, 0, None, ())
        controller.finish(self.layer, inputs[0], hidden, 0, whole=False)
        return hidden
