"""Operators that draw random numbers: where one is in a block, no run of it can be compared with another."""

from __future__ import annotations

from torch import fx

from .operators import argument, operator_name
from .reasons import Reason, Unsupported

_DRAWING = frozenset(
    [
        "rand",
        "randn",
        "randint",
        "randperm",
        "rand_like",
        "randn_like",
        "randint_like",
        "normal",
        "normal_",
        "uniform_",
        "bernoulli",
        "bernoulli_",
        "multinomial",
        "exponential_",
        "rrelu",
        "gumbel_softmax",
    ]
)
# Name of the operator to the positions of its probability and of the switch that turns it on.
_DROPOUTS = {name: (1, 2) for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")} | {
    name: (1, 2) for name in ("alpha_dropout", "feature_alpha_dropout", "feature_dropout")
}


def draws(node: fx.Node) -> bool:
    """Whether a node draws random numbers; dropout that is switched off draws none."""
    name = operator_name(node)
    if name.rstrip("_") in _DROPOUTS:
        at, switch = _DROPOUTS[name.rstrip("_")]
        on = argument(node, switch, "training", argument(node, switch, "train", True))
        return on is not False and argument(node, at, "p", 0.5) != 0
    if name == "scaled_dot_product_attention":
        return argument(node, 4, "dropout_p", 0.0) != 0
    return name in _DRAWING


def refuse_random(node: fx.Node) -> None:
    """Refuse a node that draws random numbers."""
    if draws(node):
        raise Unsupported(Reason.RANDOM, node, f"operator {operator_name(node)}")
