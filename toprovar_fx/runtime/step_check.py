"""The permutation check of the pruned graphs in a joined step, on the inputs that its layers get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..analysis.reasons import Reason
from ..lowering.rest import RegionModule
from .controller import Controller
from .step_decision import LayerDecision, Undecided
from .step_plan import StepPlan
from .token_gates import TokenGate
from .verify import run_on_copies

if TYPE_CHECKING:
    from ..passes.step import Step


def pruned_graphs_hold(
    step: Step,
    controller: Controller,
    plan: StepPlan,
    arguments: tuple[Any, ...],
    hidden: Tensor,
) -> bool:
    """Check the pruned graphs of a scale where that is due, and write down what was found.

    Args:
        step: the step of gates.
        controller: of the generation.
        plan: of the scale.
        arguments: of the step.
        hidden: a tensor of the shape, dtype and device of the hidden state.

    Returns:
        Whether all of them reproduce the dense result.

    Raises:
        Undecided: to check them the step would run twice, which it may not; its blocks check them one by one.
    """
    distinct = plan.pruned_graphs
    if any(gate.check.due(gate.pruned) for gate in distinct):
        if plan.pattern.unrepeatable:
            raise Undecided(plan.pattern.unrepeatable, reason=Reason.CHECKED_BY_BLOCK)
        _measure(step, controller, plan.decisions, arguments)
    found = {id(gate.pruned): gate.check.known(gate.pruned) for gate in distinct}
    if all(deviation is None for deviation in found.values()):
        return True
    scale = controller.scale
    known = ((gate.layer, found[id(gate.pruned)]) for gate in plan.pruned)
    controller.ledger.deviations.update({(scale, layer): by for layer, by in known if by is not None})
    return all(_holds(gate, found[id(gate.pruned)], hidden) for gate in distinct)


def _holds(gate: TokenGate, deviation: float | None, hidden: Tensor) -> bool:
    return deviation is None or deviation <= gate.check.tolerance(hidden, gate.pruned)


def _measure(
    step: Step, controller: Controller, decisions: Sequence[LayerDecision], arguments: tuple[Any, ...]
) -> None:
    """Run the step whole and as traced on copies of the caches, with a check in every pruned layer."""
    modules: dict[str, nn.Module] = {
        site.name: _Checked(one, controller)
        for site, one in zip(step.sites, decisions, strict=True)
        if one.site.plain is None
    }
    for name, child in step.graph.named_children():
        if isinstance(child, RegionModule):
            modules[name] = child.region.graph
    step.with_modules(modules).graph(*arguments)


class _Checked(nn.Module):
    """A layer that checks its pruned graph and runs whole."""

    def __init__(self, decision: LayerDecision, controller: Controller) -> None:
        super().__init__()
        self.decision, self.controller = decision, controller

    def forward(self, *inputs: Any) -> Any:
        """Run all tokens; `inputs` are the block's."""
        site = self.decision.site
        assert site.dense is not None
        begin = site.dense.begin(inputs)
        offset = None if begin is None else self.controller.offset(site.layer, begin)
        if self.decision.arm == "pruned" and site.gather is not None:
            update = self.controller.left.restored(site.layer)
            site.gather.check.deviation(site.dense, site.gather.pruned, inputs, update, offset)
        return run_on_copies(site.dense, inputs, offset)
