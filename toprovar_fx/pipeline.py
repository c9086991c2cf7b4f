"""From prompts to images: text encoding, the loop over scales, sampling and decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .between_scales import BetweenScales
from .errors import OptionError, ScheduleError
from .models.cache_memory import CacheSizes
from .models.text import TextFeatures
from .pipeline_components import PipelineComponents
from .pipeline_inputs import checked_number, count_images, text_context, track_scales
from .recorded_decoder import RecordedDecoder
from .runtime.generation import generation
from .runtime.report import report_of
from .sampling import schedule_noise, seed_tensor
from .scale_loop import ScaleLoop
from .schedules import Schedule
from .stopwatch import Stopwatch


@dataclass
class PipelineOutput:
    """Result of a generation of ``B`` images.

    Attributes:
        images: ``[B, H, W, 3]`` uint8 RGB in CPU memory.
        bits: per scale that ran, the sampled bits ``[B, L, bits]`` bool.
        summed_codes: the latent that was decoded, ``[B, d, h, w]`` float32.
        latency_ms: wall time of ``text``, ``scales``, ``decode`` and ``total`` in milliseconds.
        report: what a compiler backend has to say of the generation, if one took part.
    """

    images: NDArray[np.uint8]
    bits: list[Tensor]
    summed_codes: Tensor
    latency_ms: dict[str, float]
    report: Any = None


class InfinityPipeline(PipelineComponents):
    """Text to image with an Infinity model.

    Its components ``transformer``, ``vae``, ``text_encoder`` and ``schedule`` are attributes that may be
    replaced, as in ``pipe.transformer = torch.compile(pipe.transformer, backend="toprovar")``. The image
    decoder is no transformer; stock Inductor compiles it:
    ``pipe.vae.decoder = torch.compile(pipe.vae.decoder)``.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str] | TextFeatures,
        *,
        seed: int | Sequence[int] = 0,
        cfg: float | None = None,
        tau: float | None = None,
        top_p: float | None = None,
        progress: bool = False,
    ) -> PipelineOutput:
        """Generate one image per prompt.

        Args:
            prompts: one or more prompts, or their features.
            seed: one per image, or one for all: image i then uses ``seed + i``. An image depends on its own
                seed and prompt, not on the rest of the batch.
            cfg: guidance scale; 1 switches guidance off and halves the work.
            tau: temperature; 0 takes the more likely bit.
            top_p: nucleus; 0 or 1 switches it off.
            progress: show a progress bar.

        Raises:
            PromptError: no prompt, or one that cannot be encoded.
            SeedError: seeds out of range or of the wrong number.
            ScheduleError: what was put in the place of the schedule is none.
            OptionError: cfg, tau or top_p out of range, no text encoder for a prompt, or a transformer that
                is no module.
        """
        if not isinstance(self.transformer, torch.nn.Module):
            # What torch.compile makes of a module that is compiled already.
            raise OptionError(
                f"transformer is a {type(self.transformer).__name__}: expected a module that is compiled once"
            )
        if not isinstance(self.schedule, Schedule):
            raise ScheduleError(f"schedule is a {type(self.schedule).__name__}: expected a Schedule")
        images = count_images(prompts)
        seeds = seed_tensor(seed, images, self.device)
        config = self.config
        cfg = checked_number("cfg", config.cfg if cfg is None else cfg, math.inf)
        tau = checked_number("tau", config.tau if tau is None else tau, math.inf)
        top_p = checked_number("top_p", config.top_p if top_p is None else top_p, 1.0)
        watch = Stopwatch(self.device)
        text = prompts if isinstance(prompts, TextFeatures) else self.encode_prompts(prompts)
        loop = self.begin(text, seeds, cfg, tau, top_p)
        watch.lap("text")
        try:
            with generation(self.schedule, images) as run:
                for scale in track_scales(range(len(self.schedule)), progress):
                    # A compiled transformer may end the scales early: the code sum is decoded as it is.
                    if run.begin_scale(scale):
                        loop.run_scale(scale, conditional_only=run.conditional_only(cfg != 1))
                        run.note_codes(loop.summed, self._decoder().preview)
        finally:
            self._caches.give(loop.cache)
        watch.lap("scales")
        decoded = self.decode(loop.summed)
        watch.lap("decode")
        return PipelineOutput(
            decoded.cpu().numpy(), loop.bits, loop.summed, watch.milliseconds(), report_of(run)
        )

    def encode_prompts(self, prompts: str | Sequence[str]) -> TextFeatures:
        """Encode prompts; the result may be given to the pipeline instead of them, any number of times.

        Raises:
            PromptError: no prompt, or one that cannot be encoded.
            OptionError: the pipeline has no text encoder.
        """
        count_images(prompts)
        if self.text_encoder is None:
            raise OptionError("this pipeline has no text encoder: expected TextFeatures instead of prompts")
        return self.text_encoder.encode_prompts([prompts] if isinstance(prompts, str) else list(prompts))

    def begin(self, text: TextFeatures, seeds: Tensor, cfg: float, tau: float, top_p: float) -> ScaleLoop:
        """Do everything that comes before scale 0.

        Args:
            text: of ``B`` images.
            seeds: ``[B]`` int64.
            cfg: guidance scale.
            tau: temperature.
            top_p: nucleus.

        Raises:
            PromptError: the features are not ``[B, T, text_channels]`` of at most ``text_maxlen`` tokens.
            OptionError: an unknown ``cache_layout``.
        """
        quantizer = self.vae.quantizer
        self.transformer.set_schedule(self.schedule)
        quantizer.set_schedule(self.schedule.sides)
        context = text_context(self.transformer, text, guided=cfg != 1)
        sizes = CacheSizes.of(
            self.config,
            len(context.cond),
            self.schedule.ends[-1],
            self.transformer.dtype,
            layout=self.cache_layout,
            kept_tokens=self.schedule.tokens_before_last,
        )
        latent = (len(seeds), self.config.latent_bits, *quantizer.latent_side(-1))
        return ScaleLoop(
            transformer=self.transformer,
            quantizer=quantizer,
            schedule=self.schedule,
            context=context,
            cache=self._caches.take(sizes, self.device),
            uniform=schedule_noise(seeds, self.schedule, self.config.bits),
            summed=torch.zeros(latent, device=self.device),
            cfg=cfg,
            tau=tau,
            top_p=top_p,
            between=self._between_scales(),
        )

    def _between_scales(self) -> BetweenScales:
        """What was recorded for this quantizer on this device."""
        known, place = self._between, (self.vae.quantizer, self.device)
        if known is None or (known.quantizer, known.device) != place:
            known = self._between = BetweenScales(*place)
        return known

    def _decoder(self) -> RecordedDecoder:
        """What was recorded for this autoencoder on this device."""
        known, place = self._decoding, (self.vae, self.device)
        if known is None or (known.vae, known.device) != place:
            known = self._decoding = RecordedDecoder(*place)
        return known

    @torch.no_grad()
    def decode(self, summed_codes: Tensor) -> Tensor:
        """Decode a sum of codes ``[B, d, h, w]``, complete or not, to ``[B, H, W, 3]`` uint8 RGB."""
        return self._decoder()(summed_codes)
