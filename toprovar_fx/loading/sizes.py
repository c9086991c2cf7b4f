"""The sizes of a model read off the shapes of its checkpoint, so that no configuration has to be named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from ..errors import CheckpointError, OptionError
from ..models.bsq import BSQConfig
from ..models.configs import CONFIGS, InfinityConfig
from ..models.vae import VAE_CONFIGS, VAEConfig
from .headers import Header

T = TypeVar("T")

_BLOCK = re.compile(r"block_chunks\.(\d+)\.module\.(\d+)\.")
_LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.block\.(\d+)\.conv1\.(?:conv\.)?weight$")
# What tells the named models apart; their unconditional text may be shorter or longer in a file.
_STRUCTURE = ("depth", "width", "heads", "bits", "text_channels", "patchify")


def is_transformer(header: Mapping[str, object]) -> bool:
    """True for an Infinity transformer."""
    return "pos_start" in header and "word_embed.weight" in header


def is_vae(header: Mapping[str, object]) -> bool:
    """True for an image autoencoder of Infinity."""
    return any(key in header for key in ("decoder.conv_in.conv.weight", "decoder.conv_in.weight"))


def transformer_config(header: Header, *, patchify: bool) -> InfinityConfig:
    """Return the configuration of a transformer.

    Sampling defaults are those of the named model with this structure, else of Infinity-2B.

    Args:
        header: of an official checkpoint.
        patchify: a token is a 2 x 2 patch of the latent, which only the autoencoder tells.

    Raises:
        CheckpointError: a key that has a size is missing, or the sizes contradict each other.
    """
    blocks = {match.groups() for key in header if (match := _BLOCK.match(key))}
    first = "block_chunks.0.module.0."
    width = _size(header, "pos_start", 2, dims=3)
    try:
        config = replace(
            CONFIGS["infinity-2b"],
            depth=len(blocks),
            width=width,
            heads=_size(header, first + "sa.scale_mul_1H11", 1, dims=4),
            bits=_size(header, "word_embed.weight", 1),
            text_channels=_size(header, "text_norm.weight", 0, dims=1),
            text_maxlen=_size(header, "cfg_uncond", 0),
            block_chunks=len({chunk for chunk, _ in blocks}),
            text_pool_heads=_size(header, "text_proj_for_sos.ca.mat_q", 1, dims=3),
            mlp_ratio=_size(header, first + "ffn.fc1.weight", 0) / width,
            levels=_size(header, "lvl_embed.weight", 0),
            patchify=patchify,
        )
    except (OptionError, ArithmeticError) as error:
        raise CheckpointError(f"the transformer's shapes contradict each other: {error}") from None
    structure = [getattr(config, field) for field in _STRUCTURE]
    named = (
        known for known in CONFIGS.values() if [getattr(known, field) for field in _STRUCTURE] == structure
    )
    return next(named, config)


def vae_config(header: Header, *, patchify: bool) -> VAEConfig:
    """Return the configuration of an image autoencoder, whose names may lack the inner ``.conv``.

    Raises:
        CheckpointError: a key that has a size is missing.
    """
    base, latent = _conv_size(header, "encoder.conv_in", 0), _conv_size(header, "decoder.conv_in", 1)
    mults: dict[str, list[int]] = {}
    for side in ("encoder.down", "decoder.up"):
        levels = {int(match[2]) for key in header if (match := _LEVEL.match(key)) and match[1] == side}
        widths = [_conv_size(header, f"{side}.{level}.block.0.conv1", 0) for level in range(len(levels))]
        mults[side] = [width // base for width in widths]
    per_level = sum(1 for key in header if (match := _LEVEL.match(key)) and key.startswith("encoder.down.0."))
    config = VAEConfig(
        z_channels=latent,
        ch=base,
        encoder_mult=tuple(mults["encoder.down"]),
        decoder_mult=tuple(mults["decoder.up"]),
        num_res_blocks=per_level,
        quantizer=BSQConfig(latent, patchify=2) if patchify else None,
    )
    if not (config.encoder_mult and config.decoder_mult and per_level):
        raise CheckpointError(
            "the autoencoder has no levels: expected encoder.down.0.block.0 and decoder.up.0"
        )
    return next((known for known in VAE_CONFIGS.values() if known == config), config)


def latent_channels(vae: Header) -> int:
    """Return the channels of the latent that an autoencoder decodes."""
    return _conv_size(vae, "decoder.conv_in", 1)


def complete_vae_names(entries: Mapping[str, T], targets: Mapping[str, object]) -> dict[str, T]:
    """Keep encoder and decoder, and complete names of files that lack the inner ``.conv`` or ``.norm``."""
    named: dict[str, T] = {}
    for key, entry in entries.items():
        stem, _, kind = key.rpartition(".")
        candidates = (key, f"{stem}.conv.{kind}", f"{stem}.norm.{kind}")
        known = next((candidate for candidate in candidates if candidate in targets), key)
        if known.startswith(("encoder.", "decoder.")):
            named[known] = entry
    return named


def _conv_size(header: Header, stem: str, dim: int) -> int:
    inner = f"{stem}.conv.weight"
    return _size(header, inner if inner in header else f"{stem}.weight", dim, dims=4)


def _size(header: Header, key: str, dim: int, dims: int = 2) -> int:
    if key not in header:
        raise CheckpointError(f"the checkpoint lacks {key}, from which a size of the model is read")
    shape = header[key].shape
    if len(shape) != dims or 0 in shape:
        raise CheckpointError(f"{key} has the shape {shape}: expected {dims} sizes of at least 1")
    return shape[dim]
