"""Finding the parts of a model in a folder: official names and layouts, and folders of our own conversion.

An official folder holds the transformer as one `.pth` file (`infinity_2b_reg.pth`) or as a folder of shards
(`infinity_8b_weights`), image autoencoders (`infinity_vae_d32reg.pth`) and the T5 encoder (`flan-t5-xl`).
Parts are told by what is in them, not by their names; names only decide between several that would fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..models.configs import InfinityConfig
from ..models.vae import VAEConfig
from ..schedules import Schedule
from .config_json import parse_config
from .files import SUFFIXES, read_json
from .headers import Header, read_header
from .shards import CONVERSION, refuse_unfinished
from .sizes import is_transformer, is_vae, latent_channels, transformer_config, vae_config

PIPELINE = "pipeline.json"
FOLDER_FORMAT = "toprovar-fx folder 1"

_EXPECTED = "a transformer such as infinity_2b_reg.pth or the folder infinity_8b_weights"
# Transformers that were trained with one of two autoencoders of the same size.
_TRAINED_WITH = {"infinity_2b_reg": ("infinity_vae_d32reg", "infinity_vae_d32_reg")}
_BUDGETS = {"256x256": "0.06M", "512x512": "0.25M"}


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model are, and their sizes.

    Attributes:
        transformer, vae: a file or a folder of shards each.
        text_encoder: folder of the T5 encoder and its tokenizer; None if there is none.
        config, vae_config: sizes.
        schedule: the scales to run.
    """

    transformer: Path
    vae: Path
    text_encoder: Path | None
    config: InfinityConfig
    vae_config: VAEConfig
    schedule: Schedule


def find_parts(path: Path) -> Parts:
    """Find the parts of a model.

    Args:
        path: a folder in the official layout or written by ``toprovar convert``; or a transformer (file or
            folder of shards), whose autoencoder and text encoder are then sought beside it.

    Raises:
        CheckpointError: no transformer or autoencoder, several between which nothing decides, or a file that
            is damaged or refused.
    """
    if path.is_dir():
        refuse_unfinished(path)
        if (path / PIPELINE).is_file():
            return _own_parts(path)
    found = {entry: read_header(entry) for entry in _entries(path)}
    transformers = {entry: header for entry, header in found.items() if is_transformer(header)}
    if not transformers:
        names = ", ".join(entry.name for entry in found) or "no checkpoint"
        raise CheckpointError(f"{path} holds no Infinity transformer: found {names}, expected {_EXPECTED}")
    if len(transformers) > 1:
        names = ", ".join(sorted(entry.name for entry in transformers))
        raise CheckpointError(
            f"{path} holds {len(transformers)} transformers ({names}): expected the path of one"
        )
    ((transformer, header),) = transformers.items()
    vaes = {entry: other for entry, other in found.items() if is_vae(other)}
    folder = path if path.is_dir() else path.parent
    if not vaes:
        # Beside the transformer, or beside its folder of shards; strangers' files there are left alone.
        folder = path.parent
        beside = [entry for entry in _entries(folder) if "vae" in entry.name.lower()]
        vaes = {entry: other for entry in beside if is_vae(other := read_header(entry))}
    vae = _matching_vae(transformer, header, vaes, folder)
    bits, latent = header["word_embed.weight"].shape[1], latent_channels(vaes[vae])
    patchify = bits == 4 * latent
    config = transformer_config(header, patchify=patchify)
    return Parts(
        transformer=transformer,
        vae=vae,
        text_encoder=_text_encoder(folder, config.text_channels),
        config=config,
        vae_config=vae_config(vaes[vae], patchify=patchify),
        schedule=_schedule(transformer),
    )


def _own_parts(folder: Path) -> Parts:
    content = read_json(folder / PIPELINE)
    if content.get("format") != FOLDER_FORMAT:
        raise CheckpointError(f"{folder / PIPELINE}: expected the format {FOLDER_FORMAT!r}")
    config, vae, schedule = parse_config(content, str(folder / PIPELINE))
    return Parts(
        transformer=folder / "transformer",
        vae=folder / "vae",
        text_encoder=_text_encoder(folder, config.text_channels),
        config=config,
        vae_config=vae,
        schedule=schedule,
    )


def _entries(path: Path) -> Iterator[Path]:
    """Yield the checkpoints at ``path``: itself, single files, and folders that hold shards or files."""
    if not path.exists():
        raise CheckpointError(
            f"checkpoint {path} does not exist: expected a file or folder with {', '.join(SUFFIXES)}"
        )
    if path.is_file():
        yield path
        return
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix in SUFFIXES)
    if any(path.glob("*.index.json")) or any(re.search(r"-\d{5}-of-\d{5}$", file.stem) for file in files):
        yield path
    else:
        yield from files
    for folder in sorted(child for child in path.iterdir() if child.is_dir()):
        holds = any(file.suffix in SUFFIXES for file in folder.iterdir())
        if holds and not _is_t5(folder) and not (folder / CONVERSION).exists():
            yield folder


def _matching_vae(transformer: Path, header: Header, vaes: dict[Path, Header], folder: Path) -> Path:
    bits = header["word_embed.weight"].shape[1]
    fitting = sorted(
        vae for vae, other in vaes.items() if bits in (latent_channels(other), 4 * latent_channels(other))
    )
    trained_with = [vae for vae in fitting if vae.stem in _TRAINED_WITH.get(transformer.stem, ())]
    if len(trained_with) == 1 or len(fitting) == 1:
        return (trained_with or fitting)[0]
    if not fitting:
        others = ", ".join(f"{vae.name} with {latent_channels(other)}" for vae, other in sorted(vaes.items()))
        raise CheckpointError(
            f"{folder} holds no image autoencoder for {transformer.name}: found {others or 'none'}, "
            f"expected one with {bits} latent channels"
            + (f", or {bits // 4} and patches" if bits % 4 == 0 else "")
        )
    names = ", ".join(vae.name for vae in fitting)
    raise CheckpointError(
        f"{folder} holds {len(fitting)} autoencoders that fit {transformer.name} ({names}): keep one"
    )


def _text_encoder(folder: Path, channels: int) -> Path | None:
    found = [child for child in sorted(folder.iterdir()) if child.is_dir() and _is_t5(child)]
    fitting = [child for child in found if read_json(child / "config.json").get("d_model") == channels]
    if len(fitting) > 1:
        names = ", ".join(child.name for child in fitting)
        raise CheckpointError(f"{folder} holds {len(fitting)} text encoders ({names}): keep one")
    if found and not fitting:
        raise CheckpointError(
            f"text encoder {found[0]}: expected d_model {channels}, the transformer's text_channels"
        )
    return fitting[0] if fitting else None


def _is_t5(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") in ("t5", "mt5", "umt5")


def _schedule(transformer: Path) -> Schedule:
    """Official checkpoints for less than 1M pixels say so in their names."""
    budget = next((budget for size, budget in _BUDGETS.items() if size in transformer.name), "1M")
    return Schedule.infinity(budget)
