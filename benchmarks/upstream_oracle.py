"""A pruned generation in plain eager PyTorch: upstream's blocks called on the kept rows, without FX.

Written from the method alone: gather the kept rows, run upstream's own block on them (its cache then grows by
the kept rows alone), put the results back among rows that got the layer's last whole update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainPruning:
    """While it is entered, the blocks compute the rows `keeps[scale, layer]` [R, K] and all elsewhere.

    Args:
        blocks: upstream's.
        sides: sides of the token maps.
        keeps: kept rows; an empty set skips the layer.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        sides: Sequence[tuple[int, int]],
        keeps: Mapping[tuple[int, int], Tensor],
    ) -> None:
        self.blocks, self.sides, self.keeps = blocks, sides, keeps
        self.scale = -1
        self.updates: dict[int, tuple[int, Tensor]] = {}

    def __enter__(self) -> PlainPruning:
        for layer, block in enumerate(self.blocks):
            vars(block)["forward"] = partial(self._run, layer, block)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for block in self.blocks:
            del vars(block)["forward"]

    def _run(self, layer: int, block: nn.Module, **given: Any) -> Tensor:
        self.scale += layer == 0
        x, forward = given["x"], partial(type(block).forward, block)
        keep = self.keeps.get((self.scale, layer))
        if keep is None:
            result = forward(**given)
            self.updates[layer] = self.scale, result - x
            return result
        result = x + self._update(layer)
        if keep.shape[1]:
            rows = torch.stack([row[kept] for row, kept in zip(x, keep, strict=True)])
            computed = forward(**{**given, "x": rows, **self._positions(block, given, keep)})
            for row, kept, values in zip(result, keep, computed, strict=True):
                row[kept] = values
        return result

    def _update(self, layer: int) -> Tensor:
        known, update = self.updates[layer]
        grid = update.transpose(1, 2).unflatten(-1, self.sides[known])
        return F.interpolate(grid, size=self.sides[self.scale], mode="area").flatten(2).transpose(1, 2)

    def _positions(self, block: nn.Module, given: Mapping[str, Any], keep: Tensor) -> dict[str, object]:
        """Infinity's position table with the kept rows, per batch row, where upstream will look for them."""
        if "rope2d_freqs_grid" not in given:
            return {}
        key = str(tuple(given["scale_schedule"]))
        table: Tensor = given["rope2d_freqs_grid"][key]
        passes_scale = block.fused_norm_func is not None
        start = sum(h * w for h, w in self.sides[: self.scale]) if passes_scale else 0
        kept = torch.stack([table[:, :, 0, :, start + row] for row in keep], dim=2)
        unused = table[:, :, :, :, :start].expand(-1, -1, len(keep), -1, -1, -1)
        return {"rope2d_freqs_grid": {key: torch.cat((unused, kept), dim=4)}}
