"""The decisions about one layer as tensor maths, so that a graph can make them: eqs. 3, 5 and 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .weighing import Weighing, weigh_layers


@dataclass(frozen=True)
class DecisionRule:
    """The settings that decide; see `toprovar_fx.Options` for their meaning.

    Attributes:
        weighing: those that weigh tokens.
    """

    tau: float
    depth_compare: Literal["ge", "le"]
    layer_skip_below: float
    weighing: Weighing


@dataclass(frozen=True)
class Decision:
    """What is done with a layer: bool, ``[]`` each; `prune` and `skip` imply `past` and exclude each other.

    Attributes:
        past: the scale is past the depth D.
        skip: the layer does not run (K = 0).
        prune: it runs on its K tokens.
    """

    past: Tensor
    skip: Tensor
    prune: Tensor


def decide(
    rule: DecisionRule, best_rho: Tensor, statistic: Tensor, rate: Tensor, most: Tensor, images: int
) -> Decision:
    """Decide one layer at one scale without reading a value back.

    Equal to `depth_from_ratios`, `join_depths` and `round_to_bucket` with one bucket below 1.

    Args:
        rule: the settings.
        best_rho: by image or row, the largest rho so far (the smallest with "le"), ``[...]``; infinite where
            D is known to be reached.
        statistic: what ranks the tokens, ``[R, L]``, not negative.
        rate: ``phi R`` of eq. 5, float64, ``[]``.
        most: the largest count of wanted tokens that K tokens serve, float64, ``[]``; -1: the layer may not
            be pruned.
        images: number of images B.
    """
    best = best_rho.double()
    past = (best >= rule.tau if rule.depth_compare == "ge" else best <= rule.tau).all()
    _, shares = weigh_layers(statistic.unsqueeze(1), rate.unsqueeze(0), images, rule.weighing)
    share = shares[0].double()
    skip = past & (share < rule.layer_skip_below)
    wanted = torch.floor(share * statistic.shape[-1] + 0.5)
    return Decision(past, skip, past & ~skip & (wanted <= most))
