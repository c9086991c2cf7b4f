"""Reading of checkpoints without running their code, and strict loading with errors that name the keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from .errors import CheckpointError, nearest
from .loading.files import State, read_tensors, some
from .loading.shards import joined

# Buffers that are constant or rebuilt, so a checkpoint may lack or have them.
_OPTIONAL_BUFFERS = (
    "zero_k_bias",
    "lfq.mask",
    "lvl_1L",
    "attn_bias_for_masking",
    "Infinity_visible_kvlen",
    "Infinity_invisible_qlen",
)
_UNCONDITIONAL = "cfg_uncond"


class Described(Protocol):
    """A tensor, or what a header says of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""


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
    return joined(path, read_tensors)


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
    check_fit(module, state, strict, name=name)
    targets = module.state_dict(keep_vars=True)
    given = {key: _fit_rows(key, tensor, targets.get(key)) for key, tensor in state.items()}
    on_meta = any(target.is_meta for target in targets.values())
    fitting: State = {}
    for key, target in targets.items():
        if key in given:
            fitting[key] = given[key].to(target.dtype)
        elif on_meta and _optional(key):
            fitting[key] = torch.zeros(target.shape, dtype=target.dtype)
    module.load_state_dict(fitting, strict=False, assign=on_meta)


def check_fit(
    module: nn.Module, given: Mapping[str, Described], strict: bool = True, *, name: str = "model"
) -> None:
    """Check that ``load_into`` will take what a state dict, or a header, describes.

    Raises:
        CheckpointError: as ``load_into``; a superfluous key comes with the nearest one that would be valid.
    """
    targets = module.state_dict(keep_vars=True)
    problems = list(_misfits(targets, given))
    if strict:
        problems += _absences(targets, given)
    if problems:
        raise CheckpointError(f"checkpoint does not fit {name}: " + "; ".join(problems))


def _fit_rows(key: str, tensor: Tensor, target: Tensor | None) -> Tensor:
    """Cut or complete the unconditional text to the model's length."""
    if key.rpartition(".")[2] != _UNCONDITIONAL or target is None or tensor.shape[1:] != target.shape[1:]:
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


def _misfits(targets: Mapping[str, Tensor], given: Mapping[str, Described]) -> Iterable[str]:
    common = [key for key in targets if key in given]
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(targets[key].shape)}"
        for key in common
        if _fixed_sizes(key, given[key]) != _fixed_sizes(key, targets[key])
    ]
    if shapes:
        yield f"{len(shapes)} mis-shaped ({some(shapes)})"
    dtypes = [
        f"{key} {given[key].dtype} instead of {targets[key].dtype}"
        for key in common
        if given[key].dtype.is_floating_point != targets[key].dtype.is_floating_point
    ]
    if dtypes:
        yield f"{len(dtypes)} of wrong dtype ({some(dtypes)})"


def _absences(targets: Mapping[str, Tensor], given: Mapping[str, Described]) -> Iterable[str]:
    missing = [key for key in targets if key not in given and not _optional(key)]
    if missing:
        yield f"{len(missing)} missing ({some(missing)})"
    extra = [key for key in given if key not in targets and not _optional(key)]
    if extra:
        # A misspelt key is most likely one of the missing ones.
        close = {key: nearest(key, missing) or nearest(key, targets) for key in sorted(extra)[:3]}
        hints = {key: f"{key}, nearest is {near}" if near else key for key, near in close.items()}
        yield f"{len(extra)} superfluous ({some(hints.get(key, key) for key in extra)})"


def _fixed_sizes(key: str, tensor: Described) -> tuple[int, ...]:
    """The sizes that have to agree: all, but for the rows of the unconditional text."""
    shape = tuple(tensor.shape)
    return shape[1:] if key.rpartition(".")[2] == _UNCONDITIONAL and len(shape) == 2 else shape


def _optional(key: str) -> bool:
    return any(key == name or key.endswith("." + name) for name in _OPTIONAL_BUFFERS)
