"""Writing of checkpoints: files that are whole or not there, and read back as they were."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, OutputError
from ..whole_files import refuse_special, replace_file
from .files import one_line
from .headers import safetensors_header

_CHUNK_BYTES = 2**22
_HEADROOM_BYTES = 2**20


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`whole_files.replace_file`, in a folder that is made when missing.

    Raises:
        OutputError: the file cannot be written; nothing is left of it, and what was at ``path`` stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or one_line(error)}") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors in CPU memory, and read them back before the file gets its name.

    Raises:
        OutputError: the file cannot be written, or what was read back differs from what was written.
    """
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save_file
    except ImportError:
        raise CheckpointError(f"writing {path.name} needs safetensors: pip install safetensors") from None

    def write(partial: Path) -> None:
        try:
            save_file(dict(tensors), partial, metadata=metadata)
        except SafetensorError as error:  # the file system's error as text
            raise OutputError(f"cannot write '{path}': {one_line(error)}") from None
        header, _ = safetensors_header(partial)
        with safe_open(partial, framework="pt") as stored:
            for key, tensor in tensors.items():
                same = key in header and header[key].shape == tuple(tensor.shape)
                if (
                    not same
                    or header[key].dtype != tensor.dtype
                    or not _same_bits(stored.get_tensor(key), tensor)
                ):
                    raise OutputError(
                        f"cannot write '{path}': {key} came back different, is the disk in order?"
                    )

    write_whole(path, write)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"file {path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def check_writable(folder: Path) -> Path:
    """Check that a file can be made in ``folder``, or in the parent it would be made in; return that one.

    A file is really made and removed again: permissions alone say nothing about read-only file systems.

    Raises:
        OutputError: it is a file, or cannot be written.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"cannot write into '{folder}': '{existing}' is a file, expected a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            return existing
    except OSError as error:
        raise OutputError(
            f"cannot write into '{folder}', expected a writable folder: {error.strerror}"
        ) from error


def check_file(path: Path) -> None:
    """Check that a file can be written at ``path``, where there may be one.

    Raises:
        OutputError: there is a folder or a device, or its folder cannot be written.
    """
    try:
        refuse_special(path)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror}") from error
    check_writable(path.resolve().parent)


def check_room(folder: Path, needed_bytes: int) -> None:
    """Check that ``folder`` can be written and that its disk has room.

    Raises:
        OutputError: as ``check_writable``, or less than ``needed_bytes`` are free.
    """
    free = shutil.disk_usage(check_writable(folder)).free
    if free < needed_bytes + _HEADROOM_BYTES:
        raise OutputError(
            f"cannot write into '{folder}': {gib(needed_bytes)} needed, {gib(free)} free on its disk"
        )


def gib(size: float) -> str:
    """Return a number of bytes in GiB, or in MiB below one tenth of one."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.1f} MiB"


def _same_bits(left: Tensor, right: Tensor) -> bool:
    """Compare as bytes, because a NaN does not equal itself."""
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))
