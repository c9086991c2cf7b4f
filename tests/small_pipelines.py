"""Pipelines so small that tests draw whole images with them, and their generation without the backend."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from toprovar_fx.models.bsq import BSQConfig
from toprovar_fx.models.configs import CONFIGS, InfinityConfig
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.models.text_encoder import SceneTextEncoder
from toprovar_fx.models.vae import ImageVAE, VAEConfig
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.sampling import sample_bits
from toprovar_fx.scenes.vocab import VOCAB_SIZE
from toprovar_fx.schedules import Schedule

PROMPTS = ["a red circle", "two blue stars on sand", "a white ring above a green heart"]
SQUARE = Schedule(((1, 1), (2, 2), (3, 3), (4, 4)))
TALL = Schedule(((1, 1), (2, 1), (4, 2), (6, 3)))
SCHEDULE = Schedule(tuple((side, side) for side in (1, 2, 3, 4, 6, 8)))
DEPTH = 5
SMALL = InfinityConfig(
    depth=2,
    width=32,
    heads=2,
    bits=8,
    text_channels=16,
    text_maxlen=24,
    block_chunks=1,
    text_pool_heads=2,
    rope_grid=8,
    text_multiple=24,
)


def build(schedule: Schedule = SQUARE, patchify: bool = False) -> InfinityPipeline:
    """A pipeline with random weights, the same every time."""
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, patchify=patchify)
    transformer = Infinity(config).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    quantizer = BSQConfig(config.latent_bits, patchify=2 if patchify else 1)
    vae = ImageVAE(
        VAEConfig(config.latent_bits, ch=8, encoder_mult=(1, 2), decoder_mult=(1, 2), quantizer=quantizer)
    ).eval()
    text_encoder = SceneTextEncoder(VOCAB_SIZE, width=16, layers=1, heads=2).eval()
    return InfinityPipeline(transformer, vae, text_encoder, schedule)


def six_scales(model: str, device: str, *_: object) -> InfinityPipeline:
    """A stand-in for `cli.loading.load`: the scenes' layout and text encoder, few layers, random weights."""
    torch.manual_seed(0)
    whole = InfinityPipeline.untrained("scenes", device=device)
    config = dataclasses.replace(CONFIGS["scenes"], depth=DEPTH, width=64, heads=2)
    return InfinityPipeline(Infinity(config).eval(), whole.vae, whole.text_encoder, SCHEDULE)


def plainly(pipe: InfinityPipeline, prompts: list[str], guided_scales: int) -> list[Tensor]:
    """Bits of a generation on the uncompiled model whose later scales are drawn from conditional logits."""
    loop = pipe.begin(pipe.encode_prompts(prompts), torch.tensor([3, 4]), 3.0, 1.0, 0.97)
    for scale, end in enumerate(pipe.schedule.ends):
        logits = pipe.transformer(loop.embed(scale), loop.context, loop.cache, end)
        uniform, guided = loop.uniform[:, end - pipe.schedule.tokens[scale] : end], scale < guided_scales
        bits = sample_bits(logits if guided else logits[:2], uniform, 3.0 if guided else 1.0, 1.0, 0.97)
        loop.summed = loop.quantizer.accumulate(loop.summed, bits, scale)
        loop.bits.append(bits)
    return loop.bits
