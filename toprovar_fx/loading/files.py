"""The files of a checkpoint, and their contents without ever running their code.

Only tensors and plain containers are read: `.safetensors` by its own reader, files of `torch.save` by torch's
weights-only unpickler, which knows no class but tensors and containers. What else a pickle names is refused.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import skip_data

from ..errors import CheckpointError

State = dict[str, Tensor]

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# Where official files keep the weights; the first path that exists is taken. Where there are averaged weights
# too, upstream's inference takes the plain ones (run_infinity.py: gpt_fsdp; bsq_vae/vae.py: ema="no").
_NESTING = (
    ("trainer", "gpt_fsdp"),
    ("trainer", "gpt_ema_fsdp"),
    ("vae",),
    ("ema",),
    ("state_dict",),
    ("model",),
)
_NAMED_IN_ERRORS = 3
# The older format of torch.save starts with this number, pickled; any other pickle is none of its files.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_TORCH_MAGIC_WITHIN = 32
# In front of every storage of the older format.
_STORAGE_SIZE_BYTES = 8
# What a pickle calls for a tensor that was saved from the `meta` device.
_MAKES_META = b"_rebuild_meta_tensor_no_storage"
_LFS_POINTER = b"version https://git-lfs"


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it cannot be read, or is none.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"file {file}: expected JSON ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"file {file} holds a {type(content).__name__}: expected a JSON object")
    return content


def read_tensors(file: Path) -> State:
    """Read one file into CPU memory, mapped from the file where its format allows it.

    Raises:
        CheckpointError: unknown kind, damaged or truncated, or a pickle of more than tensors.
    """
    if kind_of(file) == ".safetensors":
        return _read_safetensors(file)
    state = tensors_of(load_torch(file), file)
    _refuse_unusual(state, file)
    return state


def kind_of(file: Path) -> str:
    """Return the suffix of a checkpoint file.

    Raises:
        CheckpointError: it is none of ``SUFFIXES``, or a Git LFS pointer stands where the file should be.
    """
    if file.suffix not in SUFFIXES:
        raise CheckpointError(f"checkpoint {file}: unknown kind {file.suffix!r}, expected one of {kinds()}")
    try:
        with file.open("rb") as stream:
            pointer = stream.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError as error:
        raise CheckpointError(f"checkpoint {file} cannot be read: {error.strerror}") from None
    if pointer:
        raise CheckpointError(f"checkpoint {file} is a Git LFS pointer: expected the file it points to")
    return file.suffix


def load_torch(file: Path) -> Any:
    """Read what ``torch.save`` wrote; the data of the zip format are mapped, the older one is read whole."""
    zipped = _is_zip(file)
    with _refusing(file):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)


def load_torch_header(file: Path) -> State:
    """Read the tensors of a ``torch.save`` file without their content, which stays on disk.

    Raises:
        CheckpointError: as ``read_tensors``; an end that is missing is noticed as well.
    """
    zipped = _is_zip(file)
    with _refusing(file), file.open("rb") as stream, skip_data():
        content = torch.load(stream, map_location="meta" if zipped else "cpu", weights_only=True)
        header_bytes = stream.tell()
    state = tensors_of(content, file)
    _refuse_unusual(state, file, none_has_data=zipped)
    if (
        not zipped
    ):  # the zip format has its directory at the end, so that has been read; this one has data there
        storages = [tensor.untyped_storage() for tensor in state.values()]
        distinct = {storage.data_ptr(): storage.nbytes() for storage in storages}
        needed = header_bytes + sum(_STORAGE_SIZE_BYTES + nbytes for nbytes in distinct.values() if nbytes)
        if needed > file.stat().st_size:
            raise CheckpointError(f"checkpoint {file} is damaged or truncated: expected {needed} bytes")
    return state


def _refuse_unusual(state: State, file: Path, none_has_data: bool = False) -> None:
    """Refuse tensors of the meta device, sparse and quantised ones.

    `none_has_data`: as read from a zip file; then its pickle says which of them are made without any.
    """
    unusual = {
        key: "quantised" if tensor.is_quantized else "sparse"
        for key, tensor in state.items()
        if tensor.is_quantized or tensor.layout is not torch.strided
    }
    if none_has_data:
        with _refusing(file), zipfile.ZipFile(file) as entries:
            pickles = [name for name in entries.namelist() if name.endswith("/data.pkl")]
            meta = any(_MAKES_META in entries.read(name) for name in pickles)
    else:
        meta = any(tensor.is_meta for tensor in state.values())
    if unusual:
        key, kind = next(iter(unusual.items()))
        raise CheckpointError(f"checkpoint {file} holds a {kind} tensor, {key}: expected dense ones")
    if meta:
        raise CheckpointError(f"checkpoint {file} holds tensors of the meta device: expected data")


def _is_zip(file: Path) -> bool:
    """Tell the two formats of ``torch.save`` apart; whatever else a pickle holds is not even looked at."""
    with _refusing(file):  # a damaged directory of a zip file raises here already
        if zipfile.is_zipfile(file):
            return True
    with file.open("rb") as stream:
        if _TORCH_MAGIC not in stream.read(_TORCH_MAGIC_WITHIN):
            raise CheckpointError(
                f"checkpoint {file} is damaged or truncated, or holds other pickled objects: refused, "
                "expected a file of torch.save with tensors only"
            )
    return False


@contextlib.contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Turn what a parser says of a bad file into one line; damage can surface as any exception."""
    try:
        with warnings.catch_warnings():
            # That a pickle has another protocol than torch's own; what cannot be read says so itself.
            warnings.simplefilter("ignore", UserWarning)
            yield
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise CheckpointError(
                f"checkpoint {file} holds pickled objects: refused, expected tensors only"
            ) from None
        raise CheckpointError(
            f"checkpoint {file} is damaged or truncated, or holds more than tensors: refused"
        ) from None
    except Exception as error:  # what a reader raises depends on where the damage is
        raise CheckpointError(f"checkpoint {file} is damaged or truncated: {one_line(error)}") from None


def tensors_of(content: Any, file: Path) -> State:
    """Descend into an official nesting and keep the tensors.

    Raises:
        CheckpointError: there is no dict of tensors.
    """
    for keys in _NESTING:
        inner = content
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            content = inner
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"checkpoint {file} holds a {type(content).__name__}: expected a dict of tensors"
        )
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def kinds() -> str:
    """Name the suffixes that are known."""
    return ", ".join(SUFFIXES)


def some(names: Iterable[str]) -> str:
    """Name the first few, and say how many more there are."""
    names = sorted(names)
    more = len(names) - _NAMED_IN_ERRORS
    return ", ".join(names[:_NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read_safetensors(file: Path) -> State:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(f"reading {file.name} needs safetensors: pip install safetensors") from None
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {file} is damaged or truncated: {one_line(error)}") from None
