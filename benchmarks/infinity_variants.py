"""What `benchmarks.infinity` compares: ways to run one Infinity model with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toprovar_fx.between_scales import BetweenScales
from toprovar_fx.models.bsq import BSQConfig, MultiScaleBSQ
from toprovar_fx.models.cache import DEFAULT_LAYOUT, KVCache
from toprovar_fx.models.cache_layout import CacheLayout
from toprovar_fx.models.cache_memory import CacheSizes
from toprovar_fx.models.configs import CONFIGS, InfinityConfig
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.sampling import schedule_noise, seed_tensor
from toprovar_fx.scale_loop import ScaleLoop
from toprovar_fx.schedules import Schedule

TINY = replace(
    CONFIGS["scenes"], depth=4, width=64, heads=2, bits=16, text_channels=16, text_pool_heads=2, rope_grid=8
)
TINY_SCHEDULE = Schedule(tuple((side, side) for side in (1, 2, 3, 4, 6, 8)))
MODELS: Mapping[str, tuple[InfinityConfig, Schedule]] = {
    "2b": (CONFIGS["infinity-2b"], Schedule.infinity()),
    "8b": (CONFIGS["infinity-8b"], Schedule.infinity()),
    "scenes": (CONFIGS["scenes"], Schedule.named("scenes")),
    "tiny": (TINY, TINY_SCHEDULE),
}
# Scales from this side on are pruned by the explicit budgets.
FIRST_PRUNED_SIDE = {"2b": 32, "8b": 32, "scenes": 16, "tiny": 4}


def budget(name: str, layers: int, schedule: Schedule, many: float, few: float) -> dict[str, object]:
    """Every fourth layer keeps `many` of its tokens at the large scales, the others `few`; one map ranks all.

    The map is that of the middle layer, one scale before; pruned tokens get nothing added.
    """
    by_layer = {layer: many if layer % 4 == 0 else few for layer in range(layers)}
    first = FIRST_PRUNED_SIDE[name]
    return {
        "preset": "criterion",
        "keep": {scale: by_layer for scale, side in enumerate(schedule.sides) if side[0] >= first},
        "entropy_source": "previous_scale",
        "ranking_depth": 0.5,
        "restore": "residual",
        "protected_layers_first": 0,
        "protected_layers_last": 0,
        "unit": "step",
    }


def toprovar_options(name: str, layers: int, schedule: Schedule) -> dict[str, dict[str, object]]:
    """Options of the backend by variant."""
    half, quarter = (budget(name, layers, schedule, many, few) for many, few in ((0.5, 0.1), (0.25, 0.05)))
    return {
        "lossless-block": {"preset": "lossless", "unit": "block"},
        "lossless": {"preset": "lossless", "unit": "step"},
        "lossless-static": {"preset": "lossless", "unit": "step", "step_sizes": "static"},
        "lossless-fused": {"preset": "lossless", "unit": "step", "step_code": "fused"},
        "50-10": half,
        "50-10-static": {**half, "step_sizes": "static"},
        "50-10-cache": {**half, "restore": "cache"},
        "50-10-block": {**half, "unit": "block"},
        "25-5": quarter,
        "25-5-fused": {**quarter, "step_code": "fused"},
        "25-5-static": {**quarter, "step_sizes": "static"},
        "25-5-cache": {**quarter, "restore": "cache"},
        "criterion": {"preset": "criterion", "entropy_source": "previous_scale", "unit": "step"},
        "criterion-block": {"preset": "criterion", "unit": "block"},
    }


class Problem:
    """One model with random weights, and what a generation of `images` images needs.

    Args:
        name: of `MODELS`, or of the `model` that is given.
        device: where it runs.
        dtype: of weights and caches.
        model: sizes and scales.
        layout: of keys and values in memory.
    """

    def __init__(
        self,
        name: str,
        device: str,
        dtype: torch.dtype,
        model: tuple[InfinityConfig, Schedule] | None = None,
        layout: CacheLayout = DEFAULT_LAYOUT,
    ) -> None:
        self.name, self.device, self.dtype, self.layout = name, device, dtype, layout
        self.config, self.schedule = MODELS[name] if model is None else model
        torch.manual_seed(0)
        with torch.device(device):
            built = Infinity(self.config)
        self.model = built.to(device, dtype).eval().requires_grad_(False)
        self.model.set_schedule(self.schedule)
        patch = 2 if self.config.patchify else 1
        sides = self.schedule.sides
        self.quantizer = MultiScaleBSQ(BSQConfig(self.config.latent_bits, sides, patch)).to(device)
        self._between = BetweenScales(self.quantizer, device)
        self._caches: dict[int, KVCache] = {}
        self._texts: dict[int, tuple[Tensor, Tensor]] = {}

    def cache(self, images: int) -> KVCache:
        """Keys and values of `images` images with guidance, in place from one generation to the next."""
        if images not in self._caches:
            self._caches.clear()
            sizes = CacheSizes.of(
                self.config,
                2 * images,
                self.schedule.ends[-1],
                self.dtype,
                layout=self.layout,
                kept_tokens=self.schedule.tokens_before_last,
            )
            self._caches[images] = KVCache(sizes, self.device)
        return self._caches[images]

    def release(self) -> None:
        """Free the model and its caches."""
        vars(self).pop("model", None)
        self._caches.clear()
        self._texts.clear()

    def begin(self, transformer: Any, images: int, seed: int) -> ScaleLoop:
        """Everything before scale 0: text and noise."""
        config, device = self.config, self.device
        if images not in self._texts:
            source = torch.Generator().manual_seed(1)
            tokens = min(config.text_multiple, config.text_maxlen)
            text = torch.randn(2 * images, tokens, config.text_channels, generator=source)
            lengths = torch.full((2 * images,), max(1, tokens * 2 // 5))
            self._texts[images] = text.to(device, self.dtype), lengths.to(device)
        height, width = self.quantizer.latent_side(-1)
        return ScaleLoop(
            transformer=transformer,
            quantizer=self.quantizer,
            schedule=self.schedule,
            context=self.model.prepare_text(*self._texts[images]),
            cache=self.cache(images),
            uniform=schedule_noise(seed_tensor(seed, images, device), self.schedule, config.bits),
            summed=torch.zeros(images, config.latent_bits, height, width, device=device),
            cfg=config.cfg,
            tau=config.tau,
            top_p=config.top_p,
            between=self._between,
        )


def transformers(problem: Problem, lowering: str) -> dict[str, Callable[[], Any]]:
    """How each variant makes its transformer."""

    def reduced() -> Any:
        for tensors in problem._caches.values():
            for tensor in (*tensors.keys, *tensors.values):
                torch._dynamo.mark_static_address(tensor)
        return torch.compile(problem.model, mode="reduce-overhead")

    made: dict[str, Callable[[], Any]] = {
        "eager": lambda: problem.model,
        "inductor": lambda: torch.compile(problem.model),
        "inductor-reduce-overhead": reduced,
    }
    for name, options in toprovar_options(problem.name, problem.config.depth, problem.schedule).items():
        settings = {**options, "lowering": lowering}
        made[name] = partial(torch.compile, problem.model, backend="toprovar", options=settings)
    return made
