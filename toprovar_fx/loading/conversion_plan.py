"""What a conversion will write, decided from headers alone, so that every run of it decides the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, OptionError
from ..models.infinity import Infinity
from ..models.vae import ImageVAE
from ..official_parts import check_parts
from .config_json import config_as_json
from .files import SUFFIXES
from .headers import Header, read_header, safetensors_header
from .layouts import FOLDER_FORMAT, find_parts
from .shards import shard_files
from .sizes import is_transformer

# Of a text encoder's folder: what `transformers` reads, without the same weights once more in other formats.
_TEXT_FILES = (".json", ".model", ".txt", ".safetensors")


@dataclass(frozen=True)
class Shard:
    """One file to write: tensors, or the copy of a file.

    Attributes:
        name: relative to the target, with ``/``.
        tensors: dtype to write and header entry, by key; empty for a copy.
        copy_of: the file to copy, None for tensors.
        nbytes: of its tensors, or of the copied file.
    """

    name: str
    tensors: Header
    copy_of: Path | None
    nbytes: int


@dataclass(frozen=True)
class ConversionPlan:
    """All that a conversion writes.

    Attributes:
        shards: in the order of writing.
        folders: ``""``, or the folders of the parts, each of which gets an index.
        pipeline: content of ``pipeline.json``; None for a checkpoint that is no whole model.
        identity: what a conversion that was interrupted must have in common with the one that continues it.
    """

    shards: tuple[Shard, ...]
    folders: tuple[str, ...]
    pipeline: dict[str, Any] | None
    identity: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all files, but for headers."""
        return sum(shard.nbytes for shard in self.shards)


def plan_conversion(source: Path, dtype: torch.dtype | None, max_shard_bytes: int) -> ConversionPlan:
    """Plan the conversion of a checkpoint, or of a folder with a transformer, its autoencoder and T5 encoder.

    Args:
        source: a single file or folder of shards stays one checkpoint; a folder in the official layout
            becomes a folder that ``from_pretrained`` loads.
        dtype: of the floating-point tensors; None keeps theirs.
        max_shard_bytes: largest size of a file's tensors; a larger tensor gets a file of its own.

    Raises:
        CheckpointError: the source is missing, damaged, refused, or does not fit together.
        OptionError: ``max_shard_bytes`` is below 1.
    """
    if max_shard_bytes < 1:
        raise OptionError(f"max_shard_bytes {max_shard_bytes}: expected at least 1")
    identity: dict[str, Any] = {"dtype": str(dtype) if dtype else None, "max_shard_bytes": max_shard_bytes}
    if source.is_file() and source.suffix == ".safetensors":
        _refuse_pipeline(source)
    if not _is_folder_of_parts(source):
        shards = _sharded("", read_header(source), dtype, max_shard_bytes)
        identity["source"] = _identities(shard_files(source))
        return ConversionPlan(tuple(shards), ("",), None, identity)
    parts = find_parts(source)
    with torch.device("meta"):
        check_parts(parts, Infinity(parts.config), ImageVAE(parts.vae_config))
    transformer = _sharded("transformer/", read_header(parts.transformer), dtype, max_shard_bytes)
    vae = _sharded("vae/", read_header(parts.vae), dtype, max_shard_bytes)
    text = [] if parts.text_encoder is None else _copied(parts.text_encoder)
    copied = [shard.copy_of for shard in text if shard.copy_of is not None]
    identity["source"] = _identities([*shard_files(parts.transformer), *shard_files(parts.vae), *copied])
    pipeline = {
        "format": FOLDER_FORMAT,
        **config_as_json(parts.config, parts.vae_config, parts.schedule),
    }
    return ConversionPlan((*transformer, *vae, *text), ("transformer/", "vae/"), pipeline, identity)


def _refuse_pipeline(source: Path) -> None:
    """A pipeline file has its configuration in its metadata, which a conversion of tensors would lose."""
    if "config" in safetensors_header(source)[1]:
        raise CheckpointError(
            f"{source} is a pipeline file already: expected an official checkpoint; "
            "load it and save_pretrained(path, dtype) for another dtype"
        )


def _is_folder_of_parts(source: Path) -> bool:
    """A folder of one checkpoint has an index or numbered shards; any other may hold a whole model."""
    if not source.is_dir():
        return False
    files = sorted(file for file in source.iterdir() if file.is_file() and file.suffix in SUFFIXES)
    if any(source.glob("*.index.json")) or any("-of-" in file.stem for file in files):
        return False
    folders = any(child.is_dir() for child in source.iterdir())
    return folders or len(files) > 1 or not files or is_transformer(read_header(files[0]))


def _sharded(folder: str, header: Header, dtype: torch.dtype | None, most: int) -> list[Shard]:
    """Fill one file after another in the order of the source, so that it is read from front to back."""
    groups: list[Header] = [{}]
    size = 0
    for key, info in header.items():
        nbytes = info.bytes_as(dtype)
        if groups[-1] and size + nbytes > most:
            groups.append({})
            size = 0
        groups[-1][key] = info
        size += nbytes
    stem, count = f"{folder}model", len(groups)
    names = [f"{stem}.safetensors"]
    if count > 1:
        names = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    return [
        Shard(name, group, None, sum(info.bytes_as(dtype) for info in group.values()))
        for name, group in zip(names, groups, strict=True)
    ]


def _copied(folder: Path) -> list[Shard]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if any(file.suffix == ".safetensors" for file in files):
        kept = [file for file in files if file.suffix in _TEXT_FILES and ".bin." not in file.name]
    else:
        kept = [file for file in files if file.suffix in (*_TEXT_FILES, ".bin")]
    return [Shard(f"text_encoder/{file.name}", {}, file, file.stat().st_size) for file in kept]


def _identities(files: list[Path]) -> dict[str, list[int]]:
    """Sizes and times of the source's files: of a file that was replaced, nothing may be continued."""
    return {str(file.resolve()): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
