"""Small checkpoints in the names, nestings and folders of the official ones, with random weights.

State dict names of the models equal upstream's (694 of Infinity-2B, 862 of Infinity-8B, all of the
autoencoders), so what a model of ours saves under an official nesting is what upstream's classes would save.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from toprovar_fx.models.bsq import BSQConfig
from toprovar_fx.models.configs import CONFIGS, InfinityConfig
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.models.vae import ImageVAE, VAEConfig
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.schedules import Schedule

# Like Infinity-2B: one `.pth`, a token is a latent position.
# Like Infinity-8B: shards, a token is a patch of 2 x 2 of them.
SMALL_2B = dataclasses.replace(
    CONFIGS["infinity-2b"],
    depth=4,
    width=32,
    heads=2,
    bits=8,
    text_channels=16,
    text_maxlen=24,
    block_chunks=2,
    text_pool_heads=4,
)
SMALL_8B = dataclasses.replace(SMALL_2B, depth=6, width=48, heads=3, block_chunks=2, patchify=True)
SHORT = Schedule(((1, 1), (2, 2), (3, 3)), grid=(64, 64))


def vae_config(config: InfinityConfig) -> VAEConfig:
    quantizer = BSQConfig(config.latent_bits, patchify=2) if config.patchify else None
    mult = (1, 2) if config.patchify else (1, 2, 4)
    return VAEConfig(config.latent_bits, ch=8, encoder_mult=mult, decoder_mult=mult, quantizer=quantizer)


def models(config: InfinityConfig, seed: int = 0) -> tuple[Infinity, ImageVAE]:
    torch.manual_seed(seed)
    return Infinity(config).eval(), ImageVAE(vae_config(config)).eval()


def official_state(model: Infinity) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def vae_state(vae: ImageVAE) -> dict[str, torch.Tensor]:
    """As upstream's class saves it: the quantiser's mask stands there under two names."""
    state = {key: value.clone() for key, value in vae.state_dict().items()}
    return {**state, "quantize.lfq.mask": state["quantizer.lfq.mask"]}


def write_shards(folder: Path, state: dict[str, torch.Tensor], shards: int = 3) -> None:
    """As transformers writes `pytorch_model.bin` in shards, which is what Infinity-8B's folders hold."""
    folder.mkdir(parents=True)
    keys = list(state)
    names = [f"pytorch_model-{number:05d}-of-{shards:05d}.bin" for number in range(1, shards + 1)]
    weight_map = {}
    for index, name in enumerate(names):
        part = keys[index::shards]
        torch.save({key: state[key] for key in part}, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def write_2b(folder: Path, seed: int = 0) -> InfinityPipeline:
    """Write `infinity_2b_reg.pth` and two autoencoders that fit it; return what the right pair draws with."""
    folder.mkdir(parents=True, exist_ok=True)
    transformer, vae = models(SMALL_2B, seed)
    torch.save(official_state(transformer), folder / "infinity_2b_reg.pth")
    torch.save({"vae": vae_state(vae)}, folder / "infinity_vae_d32reg.pth")
    torch.save({"vae": vae_state(models(SMALL_2B, seed + 1)[1])}, folder / "infinity_vae_d32.pth")
    return InfinityPipeline(transformer, vae, None, SHORT)


def write_8b(folder: Path, seed: int = 0) -> InfinityPipeline:
    """Write the folder `infinity_8b_weights` and its autoencoder."""
    transformer, vae = models(SMALL_8B, seed)
    write_shards(folder / "infinity_8b_weights", official_state(transformer))
    torch.save({"vae": vae_state(vae)}, folder / "infinity_vae_d56_f8_14_patchify.pth")
    return InfinityPipeline(transformer, vae, None, SHORT)
