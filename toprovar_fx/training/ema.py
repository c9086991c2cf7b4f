"""Exponential moving average of weights whose memory is a share of the training time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Float32 average of a module's parameters; buffers are not trained and so are not averaged.

    Args:
        module: the trained module; the average starts as a copy of its parameters.
        memory: seconds after which the weight of an old value has fallen to 1/e.
    """

    def __init__(self, module: nn.Module, memory: float) -> None:
        live = {name: value.detach() for name, value in module.named_parameters()}
        self.values = {name: value.clone().float() for name, value in live.items()}
        self._live = list(live.values())
        self._averaged = list(self.values.values())
        self._memory = memory
        self._updates = 0

    @torch.no_grad()
    def update(self, seconds: float) -> None:
        """Move towards the present weights after a step that took `seconds`."""
        self._updates += 1
        # The second bound lets the first updates forget the random initialisation quickly.
        decay = min(math.exp(-seconds / self._memory), self._updates / (self._updates + 9.0))
        get_ema_multi_avg_fn(decay)(self._averaged, self._live, self._updates)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages and the count of updates, as tensors only."""
        return {**self.values, "@updates": torch.tensor(self._updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved average."""
        self._updates = int(state["@updates"])
        for name, value in self.values.items():
            value.copy_(state[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the averages into a module of the same structure."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.values[name])
