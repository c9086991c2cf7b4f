"""Transformer phase: Infinity and its text encoder, trained jointly on cached latents."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import load_into, read_checkpoint
from ..errors import CheckpointError
from ..models.infinity import Infinity
from ..models.text_encoder import SceneTextEncoder
from ..models.vae import ImageVAE
from ..scenes.vocab import MAX_WORDS, VOCAB_SIZE
from ..schedules import Schedule
from .clock import learning_rate, stop_on_signal
from .latents import CaptionedLatents, build_cache
from .mixture import Mixture
from .objective import Objective, bit_loss, corrupt
from .optimiser import adamw
from .precision import fast_matmul, mixed
from .settings import RunSettings, TransformerSettings
from .storage import export_weights, load_state, write_json
from .trainer import Stepped, Trainer, say

_STATE = "transformer.pt"


class Pair(nn.Module):
    """The two modules that are trained together.

    Args:
        settings: their sizes.
    """

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        model = settings.model
        self.transformer = Infinity(model)
        self.text_encoder = SceneTextEncoder(
            VOCAB_SIZE, model.text_channels, settings.text_layers, model.heads, MAX_WORDS
        )


class TransformerTrainer(Trainer):
    """State and steps of the transformer phase.

    Args:
        run, settings: see `settings`.
        vae: trained tokenizer on `device`.
        workdir: folder of the resumable state.
        device: device of everything.
        init_from: folder of exported weights to start from if the workdir holds no state.
    """

    def __init__(
        self,
        run: RunSettings,
        settings: TransformerSettings,
        vae: ImageVAE,
        workdir: Path,
        device: torch.device,
        init_from: Path | None = None,
    ) -> None:
        self.settings, self.vae = settings, vae
        torch.manual_seed(run.seed)
        self.pair = Pair(settings).to(device)
        schedule = Schedule.named("scenes")
        self.pair.transformer.set_schedule(schedule)
        optimiser = adamw(
            self.pair, peak=settings.peak, weight_decay=settings.weight_decay, betas=settings.betas
        )
        path = workdir / _STATE
        state = load_state(path, device)
        if state is None and init_from is not None:
            load_pair(self.pair, init_from)
        super().__init__(
            run, self.pair, optimiser, memory=settings.memory, path=path, state=state, device=device
        )
        self.kinds = list(settings.kinds)
        self.batches = [kind.batch for kind in self.kinds]
        self.objectives = [
            Objective.build(schedule.tokens, kind.scales, settings.scale_power, device) for kind in self.kinds
        ]
        self.compilation.wrap_forwards(self.pair.transformer.blocks())
        self._loss = self.compilation.wrap(bit_loss)
        self._generator = torch.Generator(device).manual_seed(run.seed * 7919 + self.steps)

    def step(self, kind: int, data: CaptionedLatents) -> dict[str, Tensor]:
        """One optimiser step of a kind; returns detached values for the meter."""
        settings, objective, model = self.settings, self.objectives[kind], self.pair.transformer
        z, ids, lengths = data.next(self.batches[kind])
        targets, inputs = corrupt(self.vae.quantizer, z, objective.scales, settings.flips, self._generator)
        dropped = torch.rand(z.shape[0], device=self.device, generator=self._generator) < settings.dropped
        with mixed(self.device):
            features = model.unconditional(self.pair.text_encoder(ids, lengths), dropped)
            logits = model.forward_train(inputs, model.prepare_text(features, lengths))
        loss, accuracy = self._loss(logits, targets, objective.weights)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.pair.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        name = self.kinds[kind].name
        return {
            f"{name} loss": loss.detach(),
            "norm": norm.detach(),
            f"{name} bits": objective.averaging @ accuracy,
        }

    def guarded_step(self, kind: int, data: CaptionedLatents) -> dict[str, Tensor] | None:
        """A step that survives a failing compiler and, by halving its kind's batch, a full device."""
        return self.guarded(lambda: self.step(kind, data), lambda: self._halve(kind))

    def _halve(self, kind: int) -> str | None:
        if self.batches[kind] == 1:
            return None
        self.batches[kind] //= 2
        return f"{self.kinds[kind].name} batch {self.batches[kind]}"

    def measure_costs(self, data: CaptionedLatents) -> list[float]:
        """Compile each kind of step and return its seconds; the learning rate is 0 meanwhile."""
        self.set_rate(0.0)
        while True:
            began_eager = not self.compilation.enabled
            costs = [self._cost(kind, data) for kind in range(len(self.kinds))]
            if began_eager or self.compilation.enabled:
                break
        for kind, batch, cost in zip(self.kinds, self.batches, costs, strict=True):
            say(f"{kind.name}: {cost * 1e3:.0f} ms, {batch / cost:.0f} images/s")
        return costs

    def _cost(self, kind: int, data: CaptionedLatents, repeats: int = 3) -> float:
        began = time.monotonic()
        while self.guarded_step(kind, data) is None:
            pass
        self._synchronise()
        say(f"{self.kinds[kind].name}: ready in {time.monotonic() - began:.0f}s")
        began = time.monotonic()
        for _ in range(repeats):
            self.guarded_step(kind, data)
        self._synchronise()
        return (time.monotonic() - began) / repeats

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def train(self) -> None:
        """Fill the cache, then run until the budget, the session limit or a signal, then save.

        Raises:
            CheckpointError: the loss is not finite any more; the saved state is then still the last good one.
        """
        settings = self.settings
        with stop_on_signal(self.clock), fast_matmul():
            cache = build_cache(
                self.vae,
                self.compilation,
                images=settings.cache_images,
                batch=settings.cache_batch,
                seconds=settings.cache_seconds,
                device=self.device,
                seed=self.run_settings.seed + 1 + self.steps,
                stop=lambda: self.clock.over,
            )
            data = CaptionedLatents(cache, settings.caption_pool, self.run_settings.seed + self.steps)
            mixture = Mixture(self.kinds, self.measure_costs(data))
            self._loop(data, mixture)
        self.save()

    def _loop(self, data: CaptionedLatents, mixture: Mixture) -> None:
        settings = self.settings

        def rate(fraction: float) -> float:
            return learning_rate(fraction, settings.peak, warmup=settings.warmup, decay=settings.decay)

        def step(fraction: float) -> Stepped | None:
            kind = mixture.next(fraction)
            values = self.guarded_step(kind, data)
            return None if values is None else Stepped(values, self.batches[kind], mixture.costs[kind])

        self.loop("transformer", rate, step)

    def check(self, last: Mapping[str, list[float]]) -> None:
        """Refuse to go on from weights that are not finite.

        Raises:
            CheckpointError: the gradient's norm is not; the saved state is then still the last good one.
        """
        if not math.isfinite(last["norm"][0]):
            raise CheckpointError(f"step {self.steps}: gradient norm is not finite; lower --lr and resume")


def load_pair(pair: Pair, folder: Path) -> None:
    """Load exported weights of both modules.

    Raises:
        CheckpointError: the folder holds none, or they do not fit.
    """
    for name, module in pair.named_children():
        load_into(module, read_checkpoint(folder / name), name=name)


def train_transformer(trainer: TransformerTrainer, export: Path | None) -> dict[str, Any]:
    """Train (or go on training), put the averaged weights in place, export them, and return a summary."""
    trainer.train()
    summary: dict[str, Any] = {
        "phase": "transformer",
        **trainer.finish(),
        "complete": trainer.clock.complete,
        "last": {name: [round(value, 4) for value in values] for name, values in trainer.last.items()},
    }
    if export is not None:
        for name, module in trainer.pair.named_children():
            export_weights(export / name, module.state_dict(), torch.float16)
        model = asdict(trainer.settings.model)
        write_json(
            export / "training.json", {"model": model, "text_layers": trainer.settings.text_layers, **summary}
        )
    return summary
