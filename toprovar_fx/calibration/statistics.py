"""Statistics per image, scale and layer of dense generations whose layers told their entropies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..criteria.depth import low_entropy_ratio
from ..criteria.rows import join_cfg_rows
from ..criteria.scope import layer_detail, sigma_ratio
from ..options import Options
from ..schedules import Schedule
from .replay import Place

Table = NDArray[np.float64]


@dataclass(frozen=True)
class ImageStatistics:
    """One image; every table is ``[S, layers]`` float64, NaN where nothing was measured.

    Attributes:
        entropy_nats: mean over tokens and guidance rows.
        low_entropy_ratio: rho.
        scope: R of the scale's own map.
    """

    entropy_nats: Table
    low_entropy_ratio: Table
    scope: Table


def rows_of(values: Tensor, image: int, images: int) -> Tensor:
    """The rows of one image out of ``[R, ...]``: its own, and with guidance its unconditional one."""
    return values[image::images]


def measure(
    options: Options, schedule: Schedule, layers: int, maps: Mapping[Place, Tensor]
) -> ImageStatistics:
    """Compute the statistics of one image.

    Args:
        options: how rows are joined, and what R is.
        schedule: the scales.
        layers: number of layers.
        maps: entropies ``[R, L]`` in nats of the image's rows, by (scale, layer).
    """
    tables = [np.full((len(schedule), layers), np.nan) for _ in range(3)]
    for scale in range(len(schedule)):
        known = [layer for layer in range(layers) if (scale, layer) in maps]
        if not known:
            continue
        nats = torch.stack([maps[scale, layer] for layer in known]).float()
        joined = torch.stack([join_cfg_rows(each, 1, options.cfg_rows) for each in nats])
        ratios = sigma_ratio(nats.unflatten(2, schedule.sides[scale]), options.scope_centre)
        found = (
            nats.mean((1, 2)),
            low_entropy_ratio(joined).mean(1),
            layer_detail(ratios, options.beta).mean(1),
        )
        for table, values in zip(tables, found, strict=True):
            table[scale, known] = values.double().numpy()
    return ImageStatistics(*tables)
