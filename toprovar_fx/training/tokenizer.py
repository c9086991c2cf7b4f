"""Tokenizer phase: image autoencoder with straight-through multi-scale BSQ on scenes rendered on the fly."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import load_into, read_checkpoint
from ..errors import CheckpointError
from ..models.bsq import MultiScaleBSQ
from ..models.vae import ImageVAE, VAEConfig
from ..scenes.render import render
from .clock import learning_rate, stop_on_signal
from .images import image_batches
from .optimiser import adamw
from .precision import fast_matmul, mixed
from .reconstruction import commitment_loss, psnr, reconstruction_loss
from .settings import RunSettings, TokenizerSettings
from .storage import export_weights, load_state, write_json
from .trainer import Stepped, Trainer

_STATE = "tokenizer.pt"


class TokenizerTrainer(Trainer):
    """State and step of the tokenizer phase.

    Args:
        run, settings: see `settings`.
        workdir: folder of the resumable state.
        device: device of everything.
    """

    def __init__(
        self, run: RunSettings, settings: TokenizerSettings, workdir: Path, device: torch.device
    ) -> None:
        self.settings, self.batch = settings, settings.batch
        torch.manual_seed(run.seed)
        self.vae = ImageVAE(settings.vae).to(device)
        if device.type == "cuda":
            self.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        path = workdir / _STATE
        super().__init__(
            run,
            self.vae,
            adamw(self.vae, peak=settings.peak, weight_decay=0.0, betas=(0.9, 0.95)),
            memory=settings.memory,
            path=path,
            state=load_state(path, device),
            device=device,
        )
        self.compilation.wrap_forwards([self.vae.encoder, self.vae.decoder])
        self._loss = self.compilation.wrap(reconstruction_loss)
        # Scale counts of truncated images are drawn on the host: no value has to come back from the device.
        self._random = random.Random(run.seed * 7919 + self.steps)

    def step(self, images: Tensor) -> dict[str, Tensor]:
        """One optimiser step on images ``[B, 3, H, W]``; returns detached values for the meter."""
        settings = self.settings
        with mixed(self.device):
            z = self.vae.encode(images)
        z = z.float()
        summed = quantise_truncated(self.vae.quantizer, z.detach(), settings.truncated, self._random)
        # Straight through: the decoder sees the codes, the encoder their gradient.
        passed = z + (summed - z).detach()
        with mixed(self.device):
            output = self.vae.decoder(passed)
        loss, squares = self._loss(output, images)
        kept = squares[int(images.shape[0] * settings.truncated) :]
        commitment = commitment_loss(z, summed, settings.vae.z_channels)
        (loss + settings.commitment * commitment).backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {"loss": loss.detach(), "commitment": commitment.detach(), "PSNR": psnr(kept)}

    def guarded_step(self, batches: Iterator[Tensor]) -> dict[str, Tensor] | None:
        """A step that survives a failing compiler and, by halving the batch, a full device (then None)."""
        return self.guarded(lambda: self.step(next(batches)[: self.batch]), self._halve)

    def _halve(self) -> str | None:
        if self.batch == 1:
            return None
        self.batch //= 2
        return f"batch {self.batch}"

    def train(self) -> None:
        """Run until the budget, the session limit or a signal, then save."""
        batches = image_batches(
            self.batch,
            self.settings.pool,
            device=self.device,
            seed=self.run_settings.seed + self.steps,
            draw=self.compilation.wrap_pure(render),
        )

        def step(fraction: float) -> Stepped | None:
            began = time.monotonic()
            values = self.guarded_step(batches)
            return None if values is None else Stepped(values, self.batch, time.monotonic() - began)

        with stop_on_signal(self.clock), fast_matmul():
            self.guarded_step(batches)  # compiles outside the counted time
            self.loop("tokenizer", lambda fraction: learning_rate(fraction, self.settings.peak), step)
        self.save()


@torch.no_grad()
def quantise_truncated(
    quantizer: MultiScaleBSQ, z: Tensor, share: float, source: random.Random, first: int = 4
) -> Tensor:
    """Quantise latents ``[B, d, h, w]``, a first `share` of the batch with its last scales left out.

    Images that must be told from `first` or more of the early scales teach the encoder to put layout there.
    """
    cut = int(z.shape[0] * share)
    whole = quantizer.encode(z[cut:]).summed
    if cut == 0:
        return whole
    scales = source.randrange(min(first, len(quantizer.schedule)), len(quantizer.schedule) + 1)
    return torch.cat([quantizer.encode(z[:cut], scales=scales).summed, whole])


@torch.no_grad()
def measure(vae: ImageVAE, device: torch.device, images: int, batch: int) -> float:
    """PSNR in dB of reconstructions of unseen scenes."""
    values = []
    source = image_batches(batch, batch, device=device, seed=987_654)
    for _ in range(max(1, images // batch)):
        batch_images = next(source)
        with mixed(device):
            output = vae(batch_images)
        values.append(psnr((output.float() - batch_images).square().mean((1, 2, 3))))
    return float(torch.stack(values).mean())


def train_tokenizer(
    run: RunSettings, settings: TokenizerSettings, workdir: Path, device: torch.device, export: Path | None
) -> tuple[dict[str, Any], ImageVAE]:
    """Train (or go on training) the tokenizer, export its averaged weights; return a summary and it."""
    trainer = TokenizerTrainer(run, settings, workdir, device)
    trainer.train()
    summary = {
        "phase": "tokenizer",
        **trainer.finish(),
        "psnr": round(measure(trainer.vae, device, 4 * settings.batch, settings.batch), 2),
    }
    if export is not None:
        export_weights(export / "vae", trainer.vae.state_dict(), torch.float16)
        write_json(export / "vae" / "config.json", {"vae": asdict(settings.vae), **summary})
    return summary, trainer.vae


def load_tokenizer(folder: Path, device: torch.device) -> ImageVAE:
    """Load the autoencoder that `train_tokenizer` exported to a folder, in float32, for inference.

    Raises:
        CheckpointError: the folder holds no tokenizer.
    """
    path = folder / "vae" / "config.json"
    if not path.is_file():
        raise CheckpointError(f"tokenizer {folder}: expected a folder with vae/config.json")
    sizes = json.loads(path.read_text())["vae"]
    for name in ("encoder_mult", "decoder_mult"):
        sizes[name] = tuple(sizes[name])
    vae = ImageVAE(VAEConfig(**sizes))
    load_into(vae, read_checkpoint(folder / "vae"), name="tokenizer")
    vae.to(device).eval().requires_grad_(False)
    return vae.to(memory_format=torch.channels_last) if device.type == "cuda" else vae  # type: ignore[call-overload]
