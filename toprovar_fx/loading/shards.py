"""The files of which a checkpoint consists, and what is in all of them together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from ..errors import CheckpointError
from .files import SUFFIXES, kinds, read_json, some

T = TypeVar("T")

# Written by a conversion before its first shard, so that half of one is never taken for a whole checkpoint.
CONVERSION = "conversion.json"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


def shard_files(path: Path) -> list[Path]:
    """List the files of a checkpoint: itself, those of its index, or a folder's of the first kind there is.

    Raises:
        CheckpointError: nothing is there, a conversion has not finished, or a shard is missing.
    """
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist: expected a file or folder with {kinds()}")
    if path.is_file():
        return [path]
    refuse_unfinished(path)
    indexes = sorted(path.glob("*.index.json"))
    if indexes:
        return _indexed(path, indexes[0])
    for suffix in SUFFIXES:
        files_of_kind = sorted(path.glob(f"*{suffix}"))
        if files_of_kind:
            _check_numbers(path, files_of_kind)
            return files_of_kind
    raise CheckpointError(f"folder {path} holds no checkpoint: expected files {kinds()}")


def refuse_unfinished(folder: Path) -> None:
    """Raise ``CheckpointError`` if a conversion into ``folder``, or into the folder above, did not finish."""
    for target in (folder, folder.parent):
        record = target / CONVERSION
        if record.is_file() and not read_json(record).get("complete"):
            raise CheckpointError(
                f"the conversion into {target} has not finished: run `toprovar convert` again, it continues"
            )


def joined(path: str | Path, read: Callable[[Path], Mapping[str, T]]) -> dict[str, T]:
    """What `read` finds in the files of a checkpoint, by name, in their order.

    Raises:
        CheckpointError: as `shard_files` and `read`; a name in two files, or none at all.
    """
    path = Path(path)
    found: dict[str, T] = {}
    for file in shard_files(path):
        inside = read(file)
        repeated = found.keys() & inside.keys()
        if repeated:
            raise CheckpointError(
                f"checkpoint {path}: {some(repeated)} in more than one shard, expected it once"
            )
        found.update(inside)
    if not found:
        raise CheckpointError(f"checkpoint {path} holds no tensors: expected a state dict")
    return found


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        files = set(json.loads(index.read_text())["weight_map"].values())
        shards = [folder / Path(file).name for file in sorted(files)]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"index {index}: expected JSON with a weight_map ({error})") from None
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {folder}: {some(missing)} of {len(shards)} shards missing")
    return shards


def _check_numbers(folder: Path, files: list[Path]) -> None:
    """Without an index the names of the shards say how many there must be."""
    numbered = [match for file in files if (match := _SHARD.search(file.stem))]
    expected = max((int(match[2]) for match in numbered), default=0)
    missing = set(range(1, expected + 1)) - {int(match[1]) for match in numbered}
    if missing:
        names = some(f"number {number}" for number in missing)
        raise CheckpointError(f"checkpoint {folder}: {names} of {expected} shards missing")
