"""Cache of encoded scenes on the device, so that transformer steps neither render nor encode."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..models.vae import ImageVAE
from ..scenes.captions import caption_ids
from ..scenes.render import render
from ..scenes.sampler import sample_scenes
from ..scenes.scene import SceneBatch
from .compiling import Compilation
from .images import scene_seed
from .precision import mixed


def join_scenes(parts: Sequence[SceneBatch]) -> SceneBatch:
    """Concatenate scene batches along the images."""
    names = [field.name for field in fields(SceneBatch)]
    return SceneBatch(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class LatentCache:
    """Latents and the scenes they show.

    Attributes:
        latents: ``[N, d, h, w]`` float16, before quantisation.
        scenes: parameters of the N scenes, from which captions are drawn anew for every use.
    """

    latents: Tensor
    scenes: SceneBatch

    def __len__(self) -> int:
        """Return N, the number of cached scenes."""
        return self.latents.shape[0]


@torch.no_grad()
def build_cache(
    vae: ImageVAE,
    compilation: Compilation,
    *,
    images: int,
    batch: int,
    seconds: float,
    device: torch.device,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
) -> LatentCache:
    """Render and encode scenes until there are enough or the time is up.

    Args:
        vae: trained autoencoder on `device`, for the size of its latents.
        compilation: compiles the renderer and the encoder.
        images: scenes wanted, rounded up to whole batches.
        batch: scenes at once.
        seconds: time limit; at least one batch is made.
        device: where the cache lives; 32 KiB per scene at 16 x 32 x 32.
        seed: seed of the scenes.
        stop: asked after every batch whether to stop early.
    """
    encode, draw = compilation.wrap_pure(vae.encode), compilation.wrap_pure(render)
    count = -(-images // batch)
    side = 256 // vae.config.factor
    latents = torch.empty(
        count * batch, vae.config.z_channels, side, side, dtype=torch.float16, device=device
    )
    parts: list[SceneBatch] = []
    began = time.monotonic()
    for index in range(count):
        scenes = sample_scenes(batch, device=device, seed=scene_seed(seed, index))
        with mixed(device):
            latents[index * batch : (index + 1) * batch] = encode(draw(scenes))
        parts.append(scenes)
        if index == 0:
            began = time.monotonic()  # the first batch also compiled
        # Reading the clock means nothing while the device lags behind, so wait for it now and then.
        if index % 16 == 15 and device.type == "cuda":
            torch.cuda.synchronize(device)
        if time.monotonic() - began > seconds or stop():
            break
    made = len(parts) * batch
    spent = time.monotonic() - began
    print(f"cache: {made} scenes in {spent:.1f}s ({made / spent:.0f}/s)", file=sys.stderr, flush=True)
    return LatentCache(latents[:made], join_scenes(parts))


class CaptionedLatents:
    """Endless random draws from a cache with fresh captions.

    Args:
        cache: the cached scenes.
        pool: captions drawn at once: drawing is many small kernels, whatever the number.
        seed: seed of the draws.
    """

    def __init__(self, cache: LatentCache, pool: int, seed: int) -> None:
        self.cache = cache
        self._pool = pool
        self._generator = torch.Generator(cache.latents.device).manual_seed(seed)
        self._seed, self._draws = seed, 0
        self._position = pool
        self._drawn: tuple[Tensor, Tensor, Tensor] | None = None

    def next(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw latents ``[batch, d, h, w]`` float32, caption ids ``[batch, T]`` and lengths ``[batch]``."""
        if self._drawn is None or self._position + batch > self._drawn[0].shape[0]:
            self._refill(max(batch, self._pool))
        assert self._drawn is not None
        index, ids, lengths = (part[self._position : self._position + batch] for part in self._drawn)
        self._position += batch
        return self.cache.latents[index].float(), ids, lengths

    def _refill(self, count: int) -> None:
        device = self.cache.latents.device
        index = torch.randint(len(self.cache), (count,), device=device, generator=self._generator)
        scenes = self.cache.scenes[index]
        ids, lengths = caption_ids(scenes, seed=scene_seed(self._seed, self._draws))
        self._drawn = (index, ids, lengths)
        self._draws += 1
        self._position = 0
