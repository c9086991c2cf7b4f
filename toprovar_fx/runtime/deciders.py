"""What decides in one generation: the policy, the depth D and the layer scope R."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..option_sizes import refuse_other_layers
from ..options import Options
from ..policies.policy import Policy
from ..schedules import Schedule
from .depth import DepthTracker
from .ledger import Ledger
from .scope import ScopeTracker
from .statistics import Statistics


@dataclass
class Deciders:
    """Held by everybody who asks one of them, for D and R may become tensors before the first scale runs.

    Attributes:
        policy: which units are pruned, to how many tokens, and which.
        depth: D, found or set.
        scope: R, measured or set.
        layers: number of layers of the model; of its sublayers where the policy decides about these.
    """

    policy: Policy
    depth: DepthTracker
    scope: ScopeTracker
    layers: int = 0

    @classmethod
    def begin(cls, options: Options, schedule: Schedule, images: int, ledger: Ledger) -> Deciders:
        """Those of a new generation of `images` images; `ledger` takes D and R."""
        depth = DepthTracker(options, len(schedule), images, ledger)
        policy = options.deciding(options, schedule, images, depth)
        return cls(policy, depth, ScopeTracker(options, schedule, ledger))

    def adopt(self, layers: int, parts: int) -> None:
        """Learn the size of the model, when its first scale step runs.

        Raises:
            OptionError: an option names a layer that there is not.
        """
        refuse_other_layers(self.policy.options, layers // parts)
        self.layers = layers
        self.depth.adopt(layers)
        self.policy.adopt(layers, parts)

    def replace(self, depth: DepthTracker, scope: ScopeTracker) -> None:
        """Ask others for D and R from now on."""
        self.depth, self.scope = depth, scope
        self.policy.depth = depth

    def observe(self, layer: int, scale: int, entropy: Tensor) -> None:
        """Take the entropies [R, L] of a layer."""
        self.depth.observe(layer, scale, entropy)
        self.scope.observe(layer, scale, entropy)

    def observe_layer(self, layer: int, scale: int, before: Tensor, after: Tensor) -> None:
        """Look at the tokens [R, L, C] before and after a layer that ran, in whole or in part."""
        self.scope.observe_tokens(layer, scale, after)
        self.policy.observe_layer(scale, layer, before, after)

    def measure_with(self, statistics: Statistics) -> None:
        """Let D and R be computed by recordings."""
        self.depth.measure, self.scope.measure = statistics.rho, statistics.scope

    def settle(self) -> None:
        """Read back, after the last scale, what is still on the device."""
        self.depth.settle()
        self.scope.settle()

    def end_scale(self, scale: int) -> None:
        """Close the scale that ran."""
        self.depth.end_scale(scale)
        self.scope.end_scale()
