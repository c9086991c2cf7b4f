"""Stand-ins for a pipeline and its report, so that the command line is tested without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from toprovar_fx.schedules import Schedule


class FakeReport:
    """Two layers at two scales, the second of them half pruned."""

    def __init__(self, images: int) -> None:
        self.flops, self.flops_dense = 1e9 * images, 4e9 * images
        self.kept = [(0, 0, 16, 16), (0, 1, 16, 16), (1, 0, 64, 64), (1, 1, 32, 64)]
        share = np.ones((8, 8), dtype=np.float32)
        share[::2] = 0.5
        self.keep_maps = {1: share}
        self.fallbacks = ["layer 0: masked attention"]
        self.fire_rates = {"dense": 0.75, "tapped": 0.0, "pruned": 0.25, "skipped": 0.0}

        self.schedule = Schedule(((1, 1), (8, 8)))
        self.roles, self.entropies = {1: 0.25}, {(1, 0): 1.5}


@dataclass
class FakeOutput:
    images: np.ndarray
    latency_ms: dict[str, float]
    report: FakeReport | None


@dataclass
class FakePipeline:
    """Draws noise of the seed; a pruned one differs a little and has a report."""

    pruned: bool = False
    calls: list[tuple[tuple[str, ...], tuple[int, ...]]] = field(default_factory=list)
    text_encoder: object = True
    transformer: object = field(default_factory=lambda: torch.nn.Linear(2, 3, bias=False))

    def __call__(
        self, prompts: str | Sequence[str], *, seed: int | Sequence[int] = 0, cfg: Any = None, tau: Any = None
    ) -> FakeOutput:
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        seeds = [seed + index for index in range(len(texts))] if isinstance(seed, int) else list(seed)
        assert len(seeds) == len(texts)
        self.calls.append((tuple(texts), tuple(seeds)))
        if isinstance(self.transformer, torch.nn.Module):
            self.transformer(torch.zeros(5, 2))
        images = np.stack([np.random.default_rng(s).integers(0, 255, (256, 256, 3), np.uint8) for s in seeds])
        if self.pruned:
            images = images // 2 * 2
        parts = {"text": 1.0, "scales": 20.0, "decode": 4.0, "total": 25.0}
        return FakeOutput(images, parts, FakeReport(len(texts)) if self.pruned else None)
