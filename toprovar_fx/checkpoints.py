"""Reading of checkpoints without running their code, and strict loading with errors that name the keys."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError

State = dict[str, Tensor]

_TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_SUFFIXES = (".safetensors", *_TORCH_SUFFIXES)

# Where official files keep the weights; the first path that exists is taken.
_NESTING = (
    ("trainer", "gpt_ema_fsdp"),
    ("trainer", "gpt_fsdp"),
    ("ema",),
    ("vae",),
    ("state_dict",),
    ("model",),
)

# Buffers that are constant or rebuilt, so a checkpoint may lack or have them.
_OPTIONAL_BUFFERS = (
    "zero_k_bias",
    "lfq.mask",
    "lvl_1L",
    "attn_bias_for_masking",
    "Infinity_visible_kvlen",
    "Infinity_invisible_qlen",
)
_NAMED_IN_ERRORS = 3
_LFS_POINTER = b"version https://git-lfs"


def read_checkpoint(path: str | Path) -> State:
    """Read the tensors of a checkpoint into CPU memory, mapped from the file where the format allows it.

    Args:
        path: a ``.safetensors`` file; a ``.pth``, ``.pt`` or ``.bin`` file of ``torch.save``; or a folder of
            shards of either kind, with or without an ``*.index.json``. Official nestings
            (``trainer.gpt_fsdp``, ``vae``, ``ema``) are opened.

    Raises:
        CheckpointError: missing, truncated or unknown file, a pickle that holds more than tensors (it is
            refused, never run), a missing shard, or no tensors.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist: expected a file or folder with {_kinds()}")
    state: State = {}
    for file in _shards(path):
        tensors = _read_file(file)
        repeated = state.keys() & tensors.keys()
        if repeated:
            raise CheckpointError(
                f"checkpoint {path}: {_some(repeated)} in more than one shard, expected it once"
            )
        state.update(tensors)
    if not state:
        raise CheckpointError(f"checkpoint {path} holds no tensors: expected a state dict")
    return state


def checkpoint_bytes(path: str | Path) -> int:
    """Return the size in bytes of a checkpoint's files, without reading them.

    It bounds the memory of its tensors from above, up to the header. See ``module_bytes`` for a model.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist: expected a file or folder with {_kinds()}")
    return sum(file.stat().st_size for file in _shards(path))


def module_bytes(module: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of a module, which may be on the ``meta`` device, as if cast to ``dtype``."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(
        tensor.numel() * (dtype.itemsize if dtype and tensor.is_floating_point() else tensor.element_size())
        for tensor in tensors
    )


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], strict: bool = True, *, name: str = "model"
) -> None:
    """Copy a state dict into a module; nothing is copied unless everything fits.

    Floating-point tensors are cast to the module's dtype. A module on the ``meta`` device takes over the
    tensors themselves. A longer or shorter ``cfg_uncond`` (unconditional text) is cut, or completed by the
    module's own rows.

    Args:
        module: the module.
        state: tensors by parameter name. Constant buffers may be absent or superfluous.
        strict: raise on missing or superfluous keys; wrong shapes and kinds of dtype always raise.
        name: what to call the module in errors.

    Raises:
        CheckpointError: keys are missing, superfluous, mis-shaped or of a wrong dtype; the message has the
            count of each kind and the first few names.
    """
    targets = module.state_dict(keep_vars=True)
    given = {key: _fit_rows(key, tensor, targets.get(key)) for key, tensor in state.items()}
    problems = list(_misfits(targets, given))
    if strict:
        problems += _absences(targets, given)
    if problems:
        raise CheckpointError(f"checkpoint does not fit {name}: " + "; ".join(problems))
    on_meta = any(target.is_meta for target in targets.values())
    fitting: State = {}
    for key, target in targets.items():
        if key in given:
            fitting[key] = given[key].to(target.dtype)
        elif on_meta and _optional(key):
            fitting[key] = torch.zeros(target.shape, dtype=target.dtype)
    module.load_state_dict(fitting, strict=False, assign=on_meta)


def _kinds() -> str:
    return ", ".join(_SUFFIXES)


def _shards(path: Path) -> list[Path]:
    """List the files of a checkpoint: itself, those of its index, or a folder's of the first kind."""
    if path.is_file():
        return [path]
    indexes = sorted(path.glob("*.index.json"))
    if indexes:
        try:
            files = set(json.loads(indexes[0].read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"index {indexes[0]}: expected JSON with a weight_map ({error})") from None
        shards = [path / Path(file).name for file in sorted(files)]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise CheckpointError(f"checkpoint {path}: {_some(missing)} of {len(shards)} shards missing")
        return shards
    for suffix in _SUFFIXES:
        files_of_kind = sorted(path.glob(f"*{suffix}"))
        if files_of_kind:
            return files_of_kind
    raise CheckpointError(f"folder {path} holds no checkpoint: expected files {_kinds()}")


def _read_file(file: Path) -> State:
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise CheckpointError(f"checkpoint {file} is a Git LFS pointer: expected the file it points to")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in _TORCH_SUFFIXES:
        return _tensors_of(_read_torch(file), file)
    raise CheckpointError(f"checkpoint {file}: unknown kind {file.suffix!r}, expected one of {_kinds()}")


def _read_safetensors(file: Path) -> State:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(f"reading {file.name} needs safetensors: pip install safetensors") from None
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {file} is damaged or truncated: {_one_line(error)}") from None


def _read_torch(file: Path) -> Any:
    # Memory mapping needs the zip format; the older one is read whole. Both refuse everything but tensors.
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise CheckpointError(
                f"checkpoint {file} holds pickled objects: refused, expected tensors only"
            ) from None
        raise CheckpointError(
            f"checkpoint {file} is damaged or truncated, or no file of torch.save with tensors only"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {file} is damaged or truncated: {_one_line(error)}") from None


def _tensors_of(content: Any, file: Path) -> State:
    """Descend into an official nesting and keep the tensors."""
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


def _fit_rows(key: str, tensor: Tensor, target: Tensor | None) -> Tensor:
    """Cut or complete the unconditional text to the model's length."""
    if key.rpartition(".")[2] != "cfg_uncond" or target is None or tensor.shape[1:] != target.shape[1:]:
        return tensor
    missing = target.shape[0] - len(tensor)
    if missing <= 0:
        return tensor[: target.shape[0]]
    # Without rows of its own (meta device) the model repeats the checkpoint's last one.
    own = (
        tensor[-1:].expand(missing, -1)
        if target.is_meta
        else target.detach()[len(tensor) :].cpu().to(tensor.dtype)
    )
    return torch.cat((tensor, own))


def _misfits(targets: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterable[str]:
    common = [key for key in targets if key in given]
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(targets[key].shape)}"
        for key in common
        if given[key].shape != targets[key].shape
    ]
    if shapes:
        yield f"{len(shapes)} mis-shaped ({_some(shapes)})"
    kinds = [
        f"{key} {given[key].dtype} instead of {targets[key].dtype}"
        for key in common
        if given[key].is_floating_point() != targets[key].is_floating_point()
    ]
    if kinds:
        yield f"{len(kinds)} of wrong dtype ({_some(kinds)})"


def _absences(targets: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterable[str]:
    missing = [key for key in targets if key not in given and not _optional(key)]
    if missing:
        yield f"{len(missing)} missing ({_some(missing)})"
    extra = [key for key in given if key not in targets and not _optional(key)]
    if extra:
        yield f"{len(extra)} superfluous ({_some(extra)})"


def _optional(key: str) -> bool:
    return any(key == name or key.endswith("." + name) for name in _OPTIONAL_BUFFERS)


def _some(names: Iterable[str]) -> str:
    """Name the first few, and say how many more there are."""
    names = sorted(names)
    more = len(names) - _NAMED_IN_ERRORS
    return ", ".join(names[:_NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
