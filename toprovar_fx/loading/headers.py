"""What is in a checkpoint by its headers: names, shapes and dtypes, with the data left on disk."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .files import kind_of, load_torch_header, one_line
from .shards import joined

# https://github.com/huggingface/safetensors: eight bytes with the length of a JSON object, that, the data.
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor, and the file that holds it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    def bytes_as(self, dtype: torch.dtype | None) -> int:
        """Return its bytes; ``dtype`` counts for floating-point tensors alone, None for none."""
        cast = dtype if dtype is not None and self.dtype.is_floating_point else self.dtype
        return math.prod(self.shape) * cast.itemsize


Header = dict[str, TensorInfo]


def read_header(path: str | Path) -> Header:
    """Return what is in a checkpoint, in the order of its files, without reading the data.

    Args:
        path: a file or a folder of shards, as ``checkpoints.read_checkpoint`` takes it.

    Raises:
        CheckpointError: missing, truncated or unknown file, pickled objects, a missing shard, a tensor in
            two shards, or no tensors.
    """
    return joined(path, _read_file_header)


def safetensors_header(file: Path) -> tuple[Header, dict[str, str]]:
    """Return the tensors of a ``.safetensors`` file and its metadata; reads nothing but the header.

    Raises:
        CheckpointError: the header is no header, or the file is shorter or longer than it says.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size - _LENGTH_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            entries = json.loads(stream.read(length))
        metadata = entries.pop("__metadata__", {})
        header = {name: _info(file, entry) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if end != size - _LENGTH_BYTES - length:
            raise ValueError(f"{size} bytes, expected {end + _LENGTH_BYTES + length}")
    except OSError as error:
        raise CheckpointError(f"checkpoint {file} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"checkpoint {file} is damaged or truncated: {one_line(error)}") from None
    return header, metadata


def _read_file_header(file: Path) -> Header:
    if kind_of(file) == ".safetensors":
        return safetensors_header(file)[0]
    state = load_torch_header(file)
    return {name: TensorInfo(tuple(tensor.shape), tensor.dtype, file) for name, tensor in state.items()}


def _info(file: Path, entry: dict[str, Any]) -> TensorInfo:
    if not all(isinstance(size, int) and size >= 0 for size in entry["shape"]):
        raise ValueError(f"the shape {entry['shape']}")
    info = TensorInfo(tuple(entry["shape"]), _SAFETENSORS_DTYPES[entry["dtype"]], file)
    begin, end = entry["data_offsets"]
    if end - begin != info.bytes_as(None):
        raise ValueError(f"{end - begin} bytes for {entry['shape']} of {entry['dtype']}")
    return info
