"""Settings of the two training phases."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..models.configs import CONFIGS, InfinityConfig
from ..models.vae import VAE_CONFIGS, VAEConfig


@dataclass(frozen=True)
class RunSettings:
    """What both phases need.

    Attributes:
        seconds: training budget; learning rate and mixture follow it.
        session_seconds: limit of this process, counted from its start; None means none.
        seed: seed of weights, scenes and flips.
        log_every: seconds between progress lines.
        save_every: seconds between saved states.
        compile: compile the hot parts (falls back to eager if that fails).
    """

    seconds: float = 150.0
    session_seconds: float | None = None
    seed: int = 0
    log_every: float = 5.0
    save_every: float = 120.0
    compile: bool = True


@dataclass(frozen=True)
class TokenizerSettings:
    """Tokenizer phase.

    Attributes:
        vae: sizes of the autoencoder.
        batch: images a step.
        pool: images rendered at once; a multiple of `batch` wastes nothing.
        peak: highest learning rate.
        commitment: weight of the commitment loss.
        truncated: share of each batch whose last scales are dropped.
        memory: memory of the weight average as a share of the budget.
    """

    vae: VAEConfig = VAE_CONFIGS["scenes"]
    batch: int = 64
    pool: int = 512
    peak: float = 1e-3
    commitment: float = 0.05
    truncated: float = 0.125
    memory: float = 0.02


TINY_VAE = VAEConfig(
    z_channels=16, ch=8, encoder_mult=(1, 1, 1, 1), decoder_mult=(1, 1, 1, 1), num_res_blocks=1
)


def tiny_tokenizer(settings: TokenizerSettings) -> TokenizerSettings:
    """A tokenizer that trains a step in well under a second on a processor, for tests."""
    return replace(settings, vae=TINY_VAE, batch=min(settings.batch, 2), pool=4, truncated=0.5)


@dataclass(frozen=True)
class StepKind:
    """One kind of optimiser step of the transformer phase.

    Attributes:
        name: shown in the progress line.
        scales: the first so many scales are trained.
        batch: images a step.
        share: share of the training time, averaged over the run.
        tilt: what the share gains at the beginning and loses at the end.
    """

    name: str
    scales: int
    batch: int
    share: float
    tilt: float


# The first six scales decide where which object stands, and cost a sixteenth of a full pass: they get most
# steps, above all early. Tokens per step are about equal (133,000), so one learning rate serves all kinds.
STEP_KINDS = (
    StepKind("layout", scales=6, batch=1024, share=0.45, tilt=0.2),
    StepKind("middle", scales=8, batch=256, share=0.25, tilt=-0.07),
    StepKind("full", scales=10, batch=64, share=0.30, tilt=-0.13),
)


@dataclass(frozen=True)
class TransformerSettings:
    """Transformer phase.

    Attributes:
        model: sizes of the transformer.
        text_layers: layers of the text encoder.
        kinds: the kinds of steps.
        cache_images: latents to cache at most.
        cache_seconds: time to fill the cache at most; what is there by then is used.
        cache_batch: scenes rendered and encoded at once.
        caption_pool: captions drawn at once.
        peak: highest learning rate.
        warmup, decay: fractions of the budget at which the warm-up ends and the cosine starts.
        weight_decay: of matrices.
        betas: Adam's averaging factors.
        flips: highest flip probability of the self-correction, drawn uniformly per image.
        dropped: share of prompts replaced by the learned unconditional text.
        scale_power: a token of a scale with n tokens weighs ``n ** -scale_power``.
        memory: memory of the weight average as a share of the budget.
    """

    model: InfinityConfig = CONFIGS["scenes"]
    text_layers: int = 4
    kinds: tuple[StepKind, ...] = STEP_KINDS
    cache_images: int = 500_000
    cache_seconds: float = 60.0
    cache_batch: int = 1024
    caption_pool: int = 16_384
    peak: float = 1e-3
    warmup: float = 0.02
    decay: float = 0.2
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.97)
    flips: float = 0.3
    dropped: float = 0.1
    scale_power: float = 0.5
    memory: float = 0.02


def tiny_transformer(settings: TransformerSettings) -> TransformerSettings:
    """A transformer that trains a step in well under a second on a processor, for tests."""
    model = replace(settings.model, depth=2, width=32, heads=2, text_channels=32, text_pool_heads=2)
    kinds = tuple(replace(kind, batch=2) for kind in settings.kinds)
    return replace(
        settings, model=model, text_layers=1, kinds=kinds, cache_images=8, cache_batch=4, caption_pool=8
    )
