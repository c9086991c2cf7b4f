"""Endless batches of freshly rendered scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..scenes.render import render
from ..scenes.sampler import sample_scenes
from ..scenes.scene import SceneBatch

# Seeds of a run are `seed * _STREAM + counter`: two runs with neighbouring seeds never render the same scene.
_STREAM = 1_000_003


def scene_seed(seed: int, counter: int) -> int:
    """Seed of the `counter`-th draw of a run."""
    return seed * _STREAM + counter


def image_batches(
    batch: int, pool: int, *, device: torch.device, seed: int, draw: Callable[[SceneBatch], Tensor] = render
) -> Iterator[Tensor]:
    """Yield image batches ``[batch, 3, 256, 256]`` in [-1, 1], rendered `pool` at a time.

    A small batch costs as many kernel launches as a large one, so a pool is rendered and cut into batches.
    `draw` is the renderer, possibly compiled.
    """
    counter = 0
    while True:
        scenes = sample_scenes(max(pool, batch), device=device, seed=scene_seed(seed, counter))
        images = draw(scenes)
        for start in range(0, images.shape[0] - batch + 1, batch):
            yield images[start : start + batch]
        counter += 1
