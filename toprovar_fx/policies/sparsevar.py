"""Policy `sparsevar`: tokens that some layers hardly change are left out; anchors stand in for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..criteria.rows import expand_cfg_rows, join_cfg_rows
from ..criteria.selection import select_tokens
from .layer_plan import FEWEST_TOKENS, LayerPlan, LayerQuestion
from .peer import constants
from .policy import Policy

if TYPE_CHECKING:
    from ..options import Options
    from ..schedules import Schedule
    from .scale_depth import ScaleDepth

# The fourth of eight groups of layers is watched; tokens count that change above this share of the largest.
_WATCHED, _THRESHOLD = (12 / 32, 16 / 32), 0.6
# Every fourth token of every fourth row is an anchor; it stands in for tokens at least this similar to it.
_WINDOW, _SIMILAR = 4, 0.8


class SparseVAR(Policy):
    """One keep set for all layers of a scale: anchors, and what changed most at the scale before."""

    name = "sparsevar"
    summary = "one keep set for all layers: tokens that middle layers change most, and a grid of anchors"
    source = "SparseVAR, ICCV 2025, arXiv 2507.20454; constants of the port in Weepingchestnut/Lvar"
    constants: ClassVar = constants(restore="residual")
    deviations: ClassVar[tuple[str, ...]] = (
        "No code was published; constants are those of a port to 13 scales and 32 layers, as shares of both.",
        "Anchors are always computed and count among the kept tokens, as in the paper's algorithm; the port "
        "adds them for several images and leaves them out for one.",
        "Similarity to an anchor is that of the last layer's states at the scale before; published is that "
        "of its logits, which the compiler does not see.",
        "Tokens similar to no anchor keep what entered the first layer; the port also takes their codes out.",
        "A batch keeps as many tokens as its most detailed image wants, each image its own.",
    )

    def __init__(self, options: Options, schedule: Schedule, images: int, depth: ScaleDepth) -> None:
        super().__init__(options, schedule, images, depth)
        self._entering: Tensor | None = None
        self._changed: tuple[int, Tensor] | None = None
        self._used: tuple[int, tuple[int, Tensor]] | None = None
        self._plans: dict[tuple[float | None, int], LayerPlan] = {}
        self._before: tuple[int, Tensor] | None = None

    @property
    def _start(self) -> int:
        first = self.options.min_scale
        return first if first >= 0 else max(0, len(self.schedule) + first)

    @property
    def _watched(self) -> tuple[int, int]:
        """First and last layer of the watched group."""
        first, end = (math.floor(share * self.layers + 0.5) for share in _WATCHED)
        return first, max(end - 1, first)

    def prunes(self, scale: int) -> bool:
        """From `min_scale` on, once the changes of a scale are known; given ratios are all there is."""
        return not self.options.explicit and scale >= self._start and self._changed is not None

    def may_prune(self, scale: int, running: int) -> bool:
        """From `min_scale` on."""
        return scale >= self._start

    def watches(self, scale: int) -> bool:
        """From the scale before the first that it prunes on."""
        return scale + 1 >= self._start

    def observe_layer(self, scale: int, unit: int, before: Tensor, after: Tensor) -> None:
        """Measure how much the watched layers change each token, and keep the last layer's states."""
        if not self.watches(scale):
            return
        first, last = self._watched
        if unit == first:
            self._entering = before
        if unit == last and self._entering is not None:
            change = (after.float() - self._entering.float()).square().mean(-1)
            self._changed = scale, join_cfg_rows(change, self.images, "shared")
            self._entering = None
        if unit == self.units - 1:
            self._before = scale, after

    def keep_rows(self, rows: int) -> None:
        """Cut the states of the scale before."""
        if self._before is not None:
            self._before = self._before[0], self._before[1][:rows]

    def plan(self, ask: LayerQuestion) -> LayerPlan:
        """The anchors and the tokens of largest change, from what was known when the scale began."""
        scale = ask.place.scale
        if self._used is None or self._used[0] != scale:
            assert self._changed is not None
            self._used, self._plans = (scale, self._changed), {}
        # Layers of one ratio share a plan: it reads the device once for them all.
        key = ask.ratio, len(ask.hidden)
        if key not in self._plans:
            self._plans[key] = self._plan(scale, *self._used[1], *key)
        return self._plans[key]

    def _plan(self, scale: int, known: int, change: Tensor, share: float | None, rows: int) -> LayerPlan:
        """A keep set for `rows` rows, from the changes [B, l] at scale `known`; no share: what counts."""
        length, side = self.schedule.tokens[scale], self.schedule.sides[scale]
        if share is None:
            share = float((change / change.amax() > _THRESHOLD).float().mean(1).amax())
        fewest = max(math.prod(-(-size // _WINDOW) for size in side), FEWEST_TOKENS)
        count = min(length, max(math.floor(share * length + 1e-6), fewest))
        if count == length:
            return LayerPlan(length)
        anchors = _anchors(side, change.device)
        score = self._at(change[..., None], known, scale)[..., 0].masked_fill(anchors, math.inf)
        return LayerPlan(count, expand_cfg_rows(select_tokens(score, count), rows))

    def complete(self, scale: int, unit: int, keep: Tensor, hidden: Tensor) -> Tensor:
        """After the last layer: tokens that were left out get the state of their most similar anchor."""
        if unit != self.units - 1 or self._before is None:
            return hidden
        known, states = self._before
        left_out = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device).scatter_(
            1, keep, False
        )
        joined = join_cfg_rows(states, self.images, "shared")
        anchor, similarity = _nearest_anchor(self._at(joined, known, scale), self.schedule.sides[scale])
        rows = expand_cfg_rows(anchor, len(hidden))
        takes = left_out & expand_cfg_rows(similarity > _SIMILAR, len(hidden))
        copied = hidden.gather(1, rows[..., None].expand_as(hidden))
        return torch.where(takes[..., None], copied, hidden)

    def _at(self, values: Tensor, known: int, scale: int) -> Tensor:
        """Values [B, l, C] of a scale at the tokens of another, the nearest."""
        grid = values.float().transpose(1, 2).unflatten(-1, self.schedule.sides[known])
        return F.interpolate(grid, size=self.schedule.sides[scale], mode="nearest").flatten(2).transpose(1, 2)


def _anchors(side: tuple[int, int], device: torch.device) -> Tensor:
    """Which tokens of a map are anchors, [L] bool."""
    rows, columns = (torch.arange(size, device=device) % _WINDOW == 0 for size in side)
    return (rows[:, None] & columns).flatten()


def _nearest_anchor(features: Tensor, side: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of the anchors at the corners of a token's window the most similar one.

    Args:
        features: [B, L, C].
        side: height and width of the map.

    Returns:
        Token index [B, L] int64 and cosine similarity [B, L].
    """
    height, width = side
    y, x = torch.meshgrid(*(torch.arange(size, device=features.device) for size in side), indexing="ij")
    unit = F.normalize(features, dim=-1)
    found, similar = [], []
    for down in (0, 1):
        for right in (0, 1):
            row, column = (y // _WINDOW + down) * _WINDOW, (x // _WINDOW + right) * _WINDOW
            inside = ((row < height) & (column < width)).flatten()
            index = (row.clamp(max=height - 1) * width + column.clamp(max=width - 1)).flatten()
            found.append(index)
            similar.append((unit * unit[:, index]).sum(-1).masked_fill(~inside, -2.0))
    best = torch.stack(similar).max(0)
    return torch.stack(found)[:, None].expand(-1, len(features), -1).gather(0, best.indices[None])[
        0
    ], best.values
