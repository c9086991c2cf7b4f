"""Conversion of checkpoints to safetensors that continues where it was interrupted.

Every file is written beside its place, read back and only then renamed. `conversion.json` in the target,
always replaced as a whole, lists the finished ones with their SHA-256. It says that it is not complete until
the last one, the index and `pipeline.json` are there, and nothing loads a folder that says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, OutputError
from ..whole_files import PARTIAL
from .conversion_plan import ConversionPlan, Shard, plan_conversion
from .files import kind_of, one_line, read_json, read_tensors
from .layouts import PIPELINE
from .shards import CONVERSION
from .writing import check_room, sha256_of, write_json, write_safetensors, write_whole

DEFAULT_SHARD_BYTES = 5_000_000_000
_FORMAT = "toprovar-fx conversion 1"

OnFile = Callable[[str], None]


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        target: the folder.
        files: relative names of all files with their SHA-256.
        written: names of those that this run wrote; the others were there and had the right hash.
        nbytes: of all tensors and copies.
        is_pipeline: ``from_pretrained(target)`` loads it.
    """

    target: Path
    files: Mapping[str, str]
    written: tuple[str, ...]
    nbytes: int
    is_pipeline: bool


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    on_file: OnFile = lambda name: None,
) -> Conversion:
    """Convert ``source`` to safetensors in the folder ``target``; call it again after an interruption.

    One file's tensors are in memory at a time (all of a source in the old format of ``torch.save``).

    Args:
        source: a checkpoint (file or folder of shards), or a folder with a model in the official layout.
        target: a folder that is new, empty, or holds the same conversion, finished or not.
        dtype: of the floating-point tensors; None keeps theirs. A text encoder is copied as it is.
        max_shard_bytes: largest size of a file's tensors.
        on_file: called with the name of every finished file.

    Raises:
        CheckpointError: the source is missing, damaged, refused or does not fit together.
        OutputError: the target is something else, cannot be written, or has too little room; checked before
            anything is written.
        OptionError: ``max_shard_bytes`` is below 1.
    """
    source, target = Path(source), Path(target)
    _check_apart(source, target)
    plan = plan_conversion(source, dtype, max_shard_bytes)
    done = _finished(plan, source, target)
    check_room(target, sum(shard.nbytes for shard in plan.shards if shard.name not in done))
    _remove_leftovers(target, plan)
    record = {"format": _FORMAT, "complete": False, **plan.identity, "files": done}
    write_json(target / CONVERSION, record)
    reader = _Reader()
    written = []
    for shard in plan.shards:
        if shard.name not in done:
            _write(shard, target / shard.name, reader, dtype)
            done[shard.name] = sha256_of(target / shard.name)
            write_json(target / CONVERSION, record)
            written.append(shard.name)
        on_file(shard.name)
    for folder in plan.folders:
        _write_index(plan, folder, target)
    if plan.pipeline is not None:
        write_json(target / PIPELINE, plan.pipeline)
    write_json(target / CONVERSION, {**record, "complete": True})
    return Conversion(target, dict(done), tuple(written), plan.nbytes, plan.pipeline is not None)


class _Reader:
    """Reads tensors by key; keeps the contents of one file, which are mapped where its format allows it."""

    def __init__(self) -> None:
        self.file: Path | None = None
        self.state: dict[str, Tensor] = {}

    def read(self, file: Path, key: str) -> Tensor:
        if file != self.file:
            kind_of(file)
            self.state, self.file = read_tensors(file), file
        if key not in self.state:
            raise CheckpointError(f"checkpoint {file} changed while it was converted: {key} is gone")
        return self.state[key]


def _write(shard: Shard, path: Path, reader: _Reader, dtype: torch.dtype | None) -> None:
    if shard.copy_of is not None:
        original = shard.copy_of
        write_whole(path, lambda partial: shutil.copyfile(original, partial))
        if sha256_of(path) != sha256_of(original):
            path.unlink()
            raise OutputError(
                f"cannot write '{path}': the copy differs from {original}, is the disk in order?"
            )
        return
    tensors = {}
    for key, info in shard.tensors.items():
        tensor = reader.read(info.file, key)
        if tuple(tensor.shape) != info.shape or tensor.dtype != info.dtype:
            raise CheckpointError(f"checkpoint {info.file} changed while it was converted: {key}")
        cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        # Safetensors takes no two tensors of one storage, so views become tensors of their own.
        tensors[key] = tensor.to(cast, copy=True).contiguous()
    write_safetensors(path, tensors, {"format": "pt"})


def _write_index(plan: ConversionPlan, folder: str, target: Path) -> None:
    """Name the file of every key, as Hugging Face does; a single file needs no index."""
    shards = [
        shard
        for shard in plan.shards
        if shard.tensors and shard.name.rpartition("/")[0] == folder.rstrip("/")
    ]
    if len(shards) > 1:
        weight_map = {key: Path(shard.name).name for shard in shards for key in shard.tensors}
        total = sum(shard.nbytes for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(target / folder / "model.safetensors.index.json", index)


def _check_apart(source: Path, target: Path) -> None:
    if target.exists() and source.exists() and target.resolve() == source.resolve():
        raise OutputError(f"cannot convert '{source}' into itself: expected another folder as target")


def _finished(plan: ConversionPlan, source: Path, target: Path) -> dict[str, str]:
    """Return the files that an earlier run finished and that still have their hash.

    Raises:
        OutputError: the target holds anything but the same conversion.
    """
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write into '{target}': it is a file, expected a folder")
    record = target / CONVERSION
    if not record.is_file():
        foreign = [] if not target.exists() else [file for file in target.iterdir() if not _is_leftover(file)]
        if foreign:
            raise OutputError(
                f"cannot convert into '{target}': it holds {sorted(foreign)[0].name}, expected a new or "
                "empty folder, or a conversion to continue"
            )
        return {}
    try:
        content: dict[str, Any] = read_json(record)
    except CheckpointError as error:
        raise OutputError(f"cannot continue in '{target}': {one_line(error)}") from None
    for key, value in {"format": _FORMAT, **plan.identity}.items():
        if content.get(key) != value:
            what = f"of another {key}" if key != "source" else f"not of '{source}' as it is now"
            raise OutputError(
                f"cannot continue in '{target}': its conversion is {what}, expected an empty folder"
            )
    planned = {shard.name for shard in plan.shards}
    return {
        name: digest
        for name, digest in content.get("files", {}).items()
        if name in planned and (target / name).is_file() and sha256_of(target / name) == digest
    }


def _is_leftover(file: Path) -> bool:
    return file.name.startswith(PARTIAL)


def _remove_leftovers(target: Path, plan: ConversionPlan) -> None:
    """Remove what a killed process was writing."""
    for folder in {target, *(target / Path(shard.name).parent for shard in plan.shards)}:
        for file in folder.glob(f"{PARTIAL}*"):
            file.unlink()
