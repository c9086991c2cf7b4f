"""What a recorded step works out besides its results: rho, R, and what the next scale asks of its entropies.

All of it are small functions of the maps that the step measures, dozens of kernels between which a host would
have to come and go. In the step's own recording they are no launch at all, and the host reads one vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..criteria.restore import Size, upsample_map
from ..criteria.weighing import Weighing, weigh_layers
from .depth import rho_of_maps
from .scope import scope_of_maps


@dataclass(frozen=True)
class Scope:
    """How R is measured: of which layers, at which sides of the map; settings as in `toprovar_fx.Options`."""

    layers: tuple[int, ...]
    side: Size
    centre: bool
    beta: float


@dataclass(frozen=True)
class Coming:
    """What is weighed for layers of the next scale, or for those of this one that run after the step.

    Attributes:
        scale: of these layers.
        layers: those that may be pruned.
        ranked_by: for each of them, the layer whose map ranks its tokens.
        sides: of this scale and of theirs.
        weight: phi of their scale (eq. 5).
        roles: where the R of each layer stands among those measured; None: R is 1.
    """

    scale: int
    layers: tuple[int, ...]
    ranked_by: tuple[int, ...]
    sides: tuple[Size, Size]
    weight: float
    roles: tuple[int, ...] | None

    @property
    def ranking(self) -> tuple[int, ...]:
        """The layers that rank, each once."""
        return tuple(dict.fromkeys(self.ranked_by))


@dataclass(frozen=True)
class Telling:
    """What to work out of the maps of one scale.

    Attributes:
        rho: layers whose maps make rho; none where it is not asked for.
        scope: what makes R, or None.
        coming: what is weighed for layers that run later, or None.
        images: B.
        weighing: settings.
    """

    rho: tuple[int, ...]
    scope: Scope | None
    coming: Coming | None
    images: int
    weighing: Weighing

    @property
    def takes_detail(self) -> bool:
        """Whether it needs the R [N] that an earlier scale measured."""
        return self.coming is not None and self.coming.roles is not None and self.scope is None

    def __call__(self, layers: tuple[int, ...], maps: Tensor, detail: Tensor | None) -> tuple[Tensor, ...]:
        """Work it out.

        Args:
            layers: N that were measured.
            maps: their entropies in nats, [N, R, L].
            detail: the measured R, float32 [N], if `takes_detail`.

        Returns:
            One vector of float32: rho of every image or row, R of every measured layer, the share of tokens
            that every coming layer wants to keep; then, if R is measured, ``sigma1 / sigma2``
            [N, R].
        """
        numbers, others = [], []
        if self.rho:
            chosen = _of(maps, layers, self.rho).transpose(0, 1)
            numbers.append(rho_of_maps(chosen, self.images, self.weighing.cfg_rows)[1])
        if self.scope is not None:
            sides = _of(maps, layers, self.scope.layers).unflatten(2, self.scope.side)
            ratios, detail = scope_of_maps(sides, self.scope.centre, self.scope.beta)
            numbers.append(detail)
            others.append(ratios)
        if self.coming is not None:
            numbers.append(self._weigh(self.coming, layers, maps, detail))
        return torch.cat([values.float() for values in numbers]), *others

    def _weigh(self, coming: Coming, layers: tuple[int, ...], maps: Tensor, detail: Tensor | None) -> Tensor:
        """The shares [N] of the layers."""
        ranking = coming.ranking
        chosen = _of(maps, layers, ranking)
        resized = chosen
        if coming.sides[0] != coming.sides[1]:
            resized = upsample_map(chosen.flatten(0, 1), *coming.sides).unflatten(0, chosen.shape[:2])
        statistics = _of(resized, ranking, coming.ranked_by).transpose(0, 1)
        if coming.roles is None:
            roles = torch.ones(len(coming.layers), device=maps.device)
        else:
            assert detail is not None
            roles = _of(detail, tuple(range(len(detail))), coming.roles)
        # In double precision, as where the host multiplies.
        rates = roles.double() * coming.weight
        return weigh_layers(statistics, rates, self.images, self.weighing)[1]


def _of(values: Tensor, known: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """The rows of `values` that belong to the layers that are wanted; no copy where they lie together."""
    places = [known.index(layer) for layer in wanted]
    begin, end = places[0], places[0] + len(places)
    if places == list(range(begin, end)):
        return values[begin:end]
    return torch.stack([values[place] for place in places])
