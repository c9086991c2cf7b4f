"""SkipVAR's own generation and decision, and ours on the code sums that it drew."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers_pickles import Holder, read
from benchmarks.upstream_models import randomise
from benchmarks.upstream_settings import generation_settings, model_settings
from benchmarks.upstream_shims import clone_on_path, forget, nothing_compiled_on_import
from toprovar_fx.models.bsq import BSQConfig
from toprovar_fx.models.vae import ImageVAE, VAEConfig
from toprovar_fx.options import Options
from toprovar_fx.policies.classifier import load_classifier
from toprovar_fx.policies.skipvar import SkipVAR
from toprovar_fx.schedules import Schedule

BITS, WIDTH, DEPTH, TEXT, TEXT_TOKENS = 16, 128, 2, 256, 9
GENERATIONS, FEATURE_LIMIT, GRID = 4, 1e-5, 101


class Clone:
    """SkipVAR's Infinity with random weights, and an image decoder of this package in place of its own."""

    def __init__(self, clone: Path, seed: int) -> None:
        self.classifiers: dict[str, Holder] = {}
        forget("infinity")
        joblib = types.ModuleType("joblib")
        vars(joblib)["load"] = lambda path: self._load(clone / path)
        with (
            clone_on_path(clone, "infinity/models/infinity.py"),
            _module("joblib", joblib),
            nothing_compiled_on_import(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            from infinity.models.infinity import Infinity as Theirs
            from infinity.utils.dynamic_resolution import dynamic_resolution_h_w

            self.schedule = [(1, h, w) for _, h, w in dynamic_resolution_h_w[1.0]["1M"]["scales"]]
            quantizer = SimpleNamespace(
                lfq=SimpleNamespace(mask=None, indices_to_codes=self._codes), z_interplote_up="trilinear"
            )
            self.tokenizer = SimpleNamespace(embed_dim=BITS, decode=self.decode, quantizer=quantizer)
            self.model: Any = Theirs(
                vae_local=self.tokenizer,
                text_channels=TEXT,
                embed_dim=WIDTH,
                depth=DEPTH,
                num_heads=2,
                pn="1M",
                block_chunks=DEPTH,
                **model_settings(),
            ).eval()
        randomise(self.model, seed)
        torch.manual_seed(seed)
        config = VAEConfig(
            BITS, ch=16, encoder_mult=(1, 1), decoder_mult=(1, 1, 1, 1, 1), quantizer=BSQConfig(BITS)
        )
        self.decoder = ImageVAE(config).eval()
        # Random weights draw noise, for which the answer is always the same: smoother images get others.
        self.blur = 1
        self.drawn: list[Tensor] = []
        self.asked: list[tuple[float, float]] = []
        scaler, transform = (
            self.classifiers["skip_model_scaler"],
            self.classifiers["skip_model_scaler"].transform,
        )

        def told(rows: Any) -> Any:
            self.asked.append(tuple(rows[0]))
            return transform(rows)

        vars(scaler)["transform"] = told

    def generate(self, seed: int) -> int:
        """Generate by the clone's own method; returns the number of scales that ran."""
        self.drawn, self.asked = [], []
        source = torch.Generator().manual_seed(seed)
        starts, count = torch.tensor([0, TEXT_TOKENS], dtype=torch.int32), len(self.schedule)
        self.model.autoregressive_infer_cfg_SkipVAR(
            vae=self.tokenizer,
            scale_schedule=self.schedule,
            label_B_or_BLT=(
                torch.randn(TEXT_TOKENS, TEXT, generator=source),
                [TEXT_TOKENS],
                starts,
                TEXT_TOKENS,
            ),
            B=1,
            g_seed=seed,
            cfg_list=[3] * count,
            tau_list=[0.5] * count,
            vae_type=BITS,
            ret_img=False,
            **generation_settings(),
        )
        return len(self.drawn)

    def sums(self) -> list[Tensor]:
        """The code sum [1, d, h, w] after every scale that ran."""
        size = self.schedule[-1]
        grown = [F.interpolate(codes, size=size, mode="trilinear") for codes in self.drawn]
        return [total.squeeze(2) for total in itertools.accumulate(grown)]

    def _load(self, path: Path) -> Holder:
        found = self.classifiers[path.stem] = read(path)
        return found

    def _codes(self, indices: Tensor, label_type: str) -> Tensor:
        codes = (indices.permute(0, 4, 1, 2, 3).float() * 2 - 1) / math.sqrt(indices.shape[-1])
        self.drawn.append(codes)
        return codes

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Images of a code sum, blurred over `blur` pixels."""
        image = self.decoder.decode(latent)
        smooth = F.avg_pool2d(image, self.blur)
        return F.interpolate(smooth, size=image.shape[-2:], mode="bilinear")


@contextlib.contextmanager
def _module(name: str, module: types.ModuleType) -> Iterator[None]:
    """Let a module stand in for one that is imported inside."""
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def compare(path: Path, seed: int) -> Iterator[tuple[str, str, str, bool | None]]:
    """Rows of (check, found, wanted, passed)."""
    clone = Clone(path, seed)
    schedule, worst, equal, seen = Schedule.infinity("1M"), 0.0, 0, []
    for number in range(GENERATIONS):
        clone.blur = 2**number
        ran = clone.generate(seed + number)
        policy = SkipVAR(Options(policy="skipvar"), schedule, 1, None)  # type: ignore[arg-type]
        for scale, summed in enumerate(clone.sums()):
            policy.observe_codes(scale, summed, clone.decode)
        assert policy.features is not None
        pairs = zip(policy.features[0], clone.asked[0], strict=True)
        worst = max(worst, *(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs))
        equal += ran == len(schedule) - policy.skipped
        seen.append(policy.skipped)
    yield (
        "features, largest relative difference",
        f"{worst:.1e}",
        f"<= {FEATURE_LIMIT:.0e}",
        worst <= FEATURE_LIMIT,
    )
    text = f"{equal} of {GENERATIONS}, skipping {seen}"
    yield "scales that run", text, "all equal", equal == GENERATIONS
    ours = load_classifier("skipvar_ssim_84")
    for stage in ("skip", "uncond"):
        scaler, model = (
            clone.classifiers[f"{stage}_model_{kind}"] for kind in ("scaler", "Logistic_Regression")
        )
        grid = [(x, y) for x in np.linspace(0, 0.6, GRID) for y in np.linspace(0.2, 0.9, GRID)]
        theirs = model.predict(Holder.transform(scaler, grid))
        found = [ours[stage].decide(pair) for pair in grid]
        same = sum(a == int(b) for a, b in zip(found, theirs, strict=True))
        text = f"{same} of {len(grid)}, classes {sorted(set(found))}"
        yield f"decisions of `{stage}` on a grid of features", text, "all equal", same == len(grid)
