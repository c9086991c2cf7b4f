"""How little a host waits for a device that counts the tokens of several layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..criteria.weighing import Weighing, weigh_layers


def _called(tensors: Mapping[str, Tensor], images: int, rule: Weighing) -> tuple[Tensor, Tensor]:
    return weigh_layers(**tensors, images=images, rule=rule)


def _nothing() -> None:
    """There is nothing else to do."""


@dataclass(frozen=True)
class Pacing:
    """How the wait for a device is kept short.

    Attributes:
        weigh: `weigh_layers`, or a recording of it: takes its tensors by name, and `images` and `rule`.
        meanwhile: called once the device has its work and before the host waits for it.
    """

    weigh: Callable[..., tuple[Tensor, ...]] = _called
    meanwhile: Callable[[], object] = _nothing


UNPACED = Pacing()
