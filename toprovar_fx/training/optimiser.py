"""AdamW with decay on matrices only."""

from __future__ import annotations

import torch
from torch import nn


def adamw(
    module: nn.Module, *, peak: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Build the optimiser of a module.

    Args:
        module: what is trained.
        peak: initial learning rate, changed by the schedule at each step.
        weight_decay: decay of the weights of linear maps; gates, tables, biases and norms are not decayed.
        betas: Adam's averaging factors.
    """
    decayed = {id(part.weight) for part in module.modules() if isinstance(part, (nn.Linear, nn.Conv2d))}
    parameters = [value for value in module.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in parameters if id(value) in decayed], "weight_decay": weight_decay},
        {"params": [value for value in parameters if id(value) not in decayed], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=peak, betas=betas, eps=1e-8, fused=fused)
