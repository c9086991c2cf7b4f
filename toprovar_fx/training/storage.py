"""Files of a training run: resumable state, and exported weights in shards of limited size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..whole_files import replace_file

SHARD_BYTES = 14 * 2**20


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers and plain containers; the file appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda partial: torch.save(dict(state), partial))


def load_state(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Read a state saved by `save_state`; None if there is none.

    Raises:
        CheckpointError: the file is damaged or holds more than plain data.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # what a reader raises depends on where the damage is
        raise CheckpointError(f"training state {path}: expected a file of this program, {error}") from error
    return state


def export_weights(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> list[Path]:
    """Write ``model.safetensors``, or numbered shards and their index as Hugging Face lays them out.

    `checkpoints.read_checkpoint` of the same folder joins them again.

    Args:
        folder: one module's own folder; older weights in it are replaced.
        tensors: state dict; floating tensors are cast to `dtype`, others kept.
        dtype: storage type, bfloat16 or float16.

    Returns:
        The weight files, of at most `SHARD_BYTES` of tensors each (a single larger tensor apart).
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        stored = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
        # A copy without the shared storage and the strides of the trained tensor: the format has neither.
        stored = stored.clone(memory_format=torch.contiguous_format)
        if shards[-1] and size + stored.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = stored
        size += stored.nbytes
    if len(shards) == 1:
        files = [folder / "model.safetensors"]
    else:
        files = [folder / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        index = {key: file.name for file, shard in zip(files, shards, strict=True) for key in shard}
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, file)
    return files


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with a final newline, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
