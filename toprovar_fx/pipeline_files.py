"""Pipelines: written to files and read from them, and untrained ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ._torch_private import uncompiled_weights
from .checkpoints import check_fit, load_into, read_checkpoint
from .errors import CheckpointError
from .loading.config_json import config_as_json, parse_config
from .loading.files import one_line, some
from .loading.headers import read_header, safetensors_header
from .loading.layouts import find_parts
from .loading.sizes import is_transformer
from .loading.writing import write_safetensors
from .models.configs import CONFIGS, config_named
from .models.infinity import Infinity
from .models.text_encoder import SceneTextEncoder
from .models.vae import VAE_CONFIGS, ImageVAE
from .official_parts import load_parts
from .schedules import Schedule

if TYPE_CHECKING:
    from .pipeline import InfinityPipeline
    from .pipeline_components import PipelineComponents

T = TypeVar("T")

_FORMAT = "toprovar-fx pipeline 1"
_WEIGHTS = Path(__file__).parent / "weights"


def save_pipeline(
    pipe: PipelineComponents, path: Path, dtype: torch.dtype | None = None, shard_bytes: int | None = None
) -> list[Path]:
    """Write a pipeline with a ``SceneTextEncoder``; every file also holds the configuration.

    Args:
        pipe: the pipeline; compiled components are saved as the modules they wrap.
        path: ends in ``.safetensors``; shards insert ``-00001-of-00003`` before that.
        dtype: to which floating-point tensors are cast; None keeps theirs.
        shard_bytes: largest size of a file's tensors; None writes one file.

    Returns:
        The files.

    Raises:
        CheckpointError: another suffix, a text encoder of another kind, or a dtype or size that cannot be.
        OutputError: a file cannot be written; no part of it is left.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(f"pipeline file {path}: expected the suffix .safetensors")
    if not isinstance(pipe.text_encoder, SceneTextEncoder):
        raise CheckpointError(
            f"text encoder {type(pipe.text_encoder).__name__}: only SceneTextEncoder is saved"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise CheckpointError(f"dtype={dtype!r}: expected one of floating point, such as torch.bfloat16")
    if shard_bytes is not None and shard_bytes < 1:
        raise CheckpointError(f"shard_bytes={shard_bytes!r}: expected at least 1")
    parts = {"transformer": pipe.transformer, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for prefix, module in parts.items():
        for key, tensor in uncompiled_weights(module).items():
            cast = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            if shard_bytes is not None and shards[-1] and size + cast.nbytes > shard_bytes:
                shards.append({})
                size = 0
            size += cast.nbytes
            shards[-1][f"{prefix}.{key}"] = cast.cpu().contiguous()
    config = {
        **config_as_json(pipe.config, pipe.vae.config, pipe.schedule),
        "text_encoder": pipe.text_encoder.sizes,
    }
    files = [path]
    if len(shards) > 1:
        names = (f"{path.stem}-{i + 1:05d}-of-{len(shards):05d}{path.suffix}" for i in range(len(shards)))
        files = [path.with_name(name) for name in names]
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(file, shard, {"format": _FORMAT, "config": json.dumps(config)})
    return files


def load_pipeline(
    name_or_path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> InfinityPipeline:
    """Read a shipped pipeline, the file or shards of ``save_pipeline``, or a folder, onto the CPU.

    Args:
        name_or_path: a shipped name; a pipeline file; a folder in the official layout or written by
            ``toprovar convert``; or an official transformer, its autoencoder and text encoder beside it.
        dtype: of the weights; None keeps float32.
        device: of the T5 text encoder, if there is one.

    Raises:
        CheckpointError: no such name or file, not a pipeline, or weights that do not fit its configuration.
        OptionError: a text encoder is there, and the extra `text` is not installed.
    """
    from .pipeline import InfinityPipeline

    files = pipeline_files(name_or_path)
    if files is None:
        return load_parts(find_parts(Path(name_or_path)), dtype, device)
    parts, schedule = described_parts(files, dtype)
    state = {key: tensor for file in files for key, tensor in read_checkpoint(file).items()}
    for prefix, module in vars(parts).items():
        load_into(module, _under(state, prefix), name=prefix)
    return InfinityPipeline(parts.transformer, parts.vae, parts.text_encoder, schedule)


@dataclass
class PipelineModules:
    """The modules of a pipeline under the names that prefix their keys in its files."""

    transformer: Infinity
    vae: ImageVAE
    text_encoder: SceneTextEncoder


def described_parts(files: list[Path], dtype: torch.dtype | None) -> tuple[PipelineModules, Schedule]:
    """Build the modules of a pipeline file or its shards on the ``meta`` device, and its schedule.

    Raises:
        CheckpointError: the configuration is not valid, or the headers do not fit it.
    """
    content = read_config(files[0])
    config, vae_config, schedule = parse_config(content, str(files[0]))
    with torch.device("meta"):
        modules = PipelineModules(
            Infinity(config).to(dtype),
            ImageVAE(vae_config).to(dtype),
            _scene_text_encoder(content, files[0]).to(dtype),
        )
    header = {key: info for file in files for key, info in read_header(file).items()}
    for prefix, module in vars(modules).items():
        check_fit(module, _under(header, prefix), name=prefix)
    strangers = [key for key in header if key.partition(".")[0] not in vars(modules)]
    if strangers:
        raise CheckpointError(
            f"pipeline file {files[0]} holds {len(strangers)} tensors of no part ({some(strangers)}): "
            f"expected keys that begin with one of {', '.join(vars(modules))}"
        )
    return modules, schedule


def untrained_pipeline(name: str, schedule: Schedule | None = None) -> InfinityPipeline:
    """Build a pipeline with random weights; official models get no text encoder.

    Raises:
        OptionError: unknown name.
    """
    from .pipeline import InfinityPipeline
    from .scenes.vocab import VOCAB_SIZE

    config = config_named(name)
    if schedule is None:
        schedule = Schedule.named("scenes") if name == "scenes" else Schedule.infinity()
    text_encoder = SceneTextEncoder(VOCAB_SIZE, width=config.text_channels) if name == "scenes" else None
    return InfinityPipeline(Infinity(config), ImageVAE(VAE_CONFIGS[name]), text_encoder, schedule)


def pipeline_files(name_or_path: str | Path) -> list[Path] | None:
    """Find the file or all shards of a pipeline; a shipped name goes before a path.

    Returns:
        The files, or None if the path is a folder or a checkpoint that is no pipeline of ours.

    Raises:
        CheckpointError: nothing is there, or shards are missing.
    """
    if not isinstance(name_or_path, (str, Path)) or not str(name_or_path).strip():
        raise CheckpointError(f"pipeline {name_or_path!r}: expected 'scenes' or a path")
    name = str(name_or_path)
    for path in ([_WEIGHTS / f"{name}.safetensors"] if name in CONFIGS else []) + [Path(name_or_path)]:
        if path.is_dir():
            return None
        if path.is_file():
            is_official = path.suffix != ".safetensors" or is_transformer(read_header(path))
            return None if is_official else [path]
        shards = sorted(path.parent.glob(f"{escape(path.stem)}-*-of-*.safetensors"))
        if shards:
            expected = int(shards[0].stem.rpartition("-")[2])
            if len(shards) != expected:
                raise CheckpointError(f"pipeline {name!r}: {len(shards)} of {expected} shards are there")
            return shards
    if name in CONFIGS:
        raise CheckpointError(f"no weights of {name!r} are shipped: use from_official or untrained")
    raise CheckpointError(
        f"pipeline {name!r}: expected 'scenes' or the path of a .safetensors file, "
        "of a folder in the official layout or of a transformer"
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration out of a pipeline file.

    Raises:
        CheckpointError: it is damaged, or no pipeline file.
    """
    metadata = safetensors_header(path)[1]
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"file {path} is no pipeline: expected metadata format {_FORMAT!r}")
    try:
        config = json.loads(metadata["config"])
    except (KeyError, TypeError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(f"pipeline file {path}: expected its configuration as a JSON object")
    return config


def _scene_text_encoder(content: Mapping[str, Any], source: Path) -> SceneTextEncoder:
    """Build the text encoder that a configuration describes.

    Raises:
        CheckpointError: the configuration has none, or an impossible one.
    """
    try:
        return SceneTextEncoder(**content["text_encoder"])
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"text encoder in {source} is not valid: {one_line(error)}") from None


def _under(state: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(f"{prefix}.")}
