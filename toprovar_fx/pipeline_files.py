"""Building pipelines: from one file, from official checkpoints, or untrained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoints import load_into, read_checkpoint
from .errors import CheckpointError
from .models.bsq import BSQConfig
from .models.configs import CONFIGS, InfinityConfig, config_named
from .models.infinity import Infinity
from .models.text_encoder import SceneTextEncoder
from .models.vae import VAE_CONFIGS, ImageVAE, VAEConfig
from .schedules import Schedule

if TYPE_CHECKING:
    from .pipeline import InfinityPipeline

_FORMAT = "toprovar-fx pipeline 1"
_WEIGHTS = Path(__file__).parent / "weights"


def save_pipeline(
    pipe: InfinityPipeline, path: Path, dtype: torch.dtype | None = None, shard_bytes: int | None = None
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
        CheckpointError: another suffix, or a text encoder of another kind.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise CheckpointError(f"writing {path.name} needs safetensors: pip install safetensors") from None
    if path.suffix != ".safetensors":
        raise CheckpointError(f"pipeline file {path}: expected the suffix .safetensors")
    if not isinstance(pipe.text_encoder, SceneTextEncoder):
        raise CheckpointError(
            f"text encoder {type(pipe.text_encoder).__name__}: only SceneTextEncoder is saved"
        )
    parts = {"transformer": pipe.transformer, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for prefix, module in parts.items():
        for key, tensor in _unwrapped(module).state_dict().items():
            cast = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            if shard_bytes is not None and shards[-1] and size + cast.nbytes > shard_bytes:
                shards.append({})
                size = 0
            size += cast.nbytes
            shards[-1][f"{prefix}.{key}"] = cast.cpu().contiguous()
    config = {
        "transformer": asdict(pipe.config),
        "vae": asdict(pipe.vae.config),
        "text_encoder": pipe.text_encoder.sizes,
        "schedule": asdict(pipe.schedule),
    }
    files = [path]
    if len(shards) > 1:
        names = (f"{path.stem}-{i + 1:05d}-of-{len(shards):05d}{path.suffix}" for i in range(len(shards)))
        files = [path.with_name(name) for name in names]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, file, metadata={"format": _FORMAT, "config": json.dumps(config)})
    return files


def load_pipeline(name_or_path: str | Path) -> InfinityPipeline:
    """Read a shipped pipeline by name, or the file or shards of ``save_pipeline``, onto the CPU.

    Raises:
        CheckpointError: no such name or file, not a pipeline file, or weights that do not fit its
            configuration.
    """
    from .pipeline import InfinityPipeline

    files = _pipeline_files(name_or_path)
    config = _read_config(files[0])
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_checkpoint(file))
    with torch.device("meta"):
        transformer = Infinity(InfinityConfig(**config["transformer"]))
        vae = ImageVAE(_vae_config(config["vae"]))
        text_encoder = SceneTextEncoder(**config["text_encoder"])
    parts: dict[str, nn.Module] = {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}
    for prefix, module in parts.items():
        load_into(module, _under(state, prefix), name=prefix)
    sides = tuple((height, width) for height, width in config["schedule"]["sides"])
    grid = config["schedule"]["grid"]
    return InfinityPipeline(transformer, vae, text_encoder, Schedule(sides, tuple(grid) if grid else None))


def load_official(
    name: str, transformer: str | Path, vae: str | Path, schedule: Schedule, dtype: torch.dtype
) -> InfinityPipeline:
    """Read official checkpoints onto the CPU, without a text encoder.

    Raises:
        OptionError: unknown name.
        CheckpointError: a file is missing, damaged or does not fit.
    """
    from .pipeline import InfinityPipeline

    with torch.device("meta"):
        model = Infinity(config_named(name)).to(dtype)
        autoencoder = ImageVAE(VAE_CONFIGS[name]).to(dtype)
    load_into(model, read_checkpoint(transformer), name=f"the {name} transformer")
    state = _official_vae_names(read_checkpoint(vae), autoencoder)
    load_into(autoencoder, state, name=f"the {name} autoencoder")
    return InfinityPipeline(model, autoencoder, None, schedule)


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


def _pipeline_files(name_or_path: str | Path) -> list[Path]:
    """Find the file or all shards of a pipeline; a shipped name goes before a path."""
    name = str(name_or_path)
    for path in ([_WEIGHTS / f"{name}.safetensors"] if name in CONFIGS else []) + [Path(name_or_path)]:
        if path.is_file():
            return [path]
        shards = sorted(path.parent.glob(f"{escape(path.stem)}-*-of-*.safetensors"))
        if shards:
            expected = int(shards[0].stem.rpartition("-")[2])
            if len(shards) != expected:
                raise CheckpointError(f"pipeline {name!r}: {len(shards)} of {expected} shards are there")
            return shards
    if name in CONFIGS:
        raise CheckpointError(f"no weights of {name!r} are shipped: use from_official or untrained")
    raise CheckpointError(f"pipeline {name!r}: expected 'scenes' or the path of a .safetensors file")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise CheckpointError(f"reading {path.name} needs safetensors: pip install safetensors") from None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"pipeline file {path} is damaged or truncated: {error}") from None
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"file {path} is no pipeline: expected metadata format {_FORMAT!r}")
    config: dict[str, Any] = json.loads(metadata["config"])
    return config


def _vae_config(values: Mapping[str, Any]) -> VAEConfig:
    """Rebuild the nested configuration from JSON, which has no tuples."""
    quantizer = values["quantizer"]
    if quantizer is not None:
        sides = tuple((height, width) for height, width in quantizer["schedule"])
        quantizer = BSQConfig(**{**quantizer, "schedule": sides})
    multiples = {key: tuple(values[key]) for key in ("encoder_mult", "decoder_mult")}
    return VAEConfig(**{**values, **multiples, "quantizer": quantizer})


def _official_vae_names(state: Mapping[str, Tensor], vae: nn.Module) -> dict[str, Tensor]:
    """Keep encoder and decoder, and complete names of files that lack the inner ``.conv`` or ``.norm``."""
    targets = vae.state_dict().keys()
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        stem, _, kind = key.rpartition(".")
        candidates = (key, f"{stem}.conv.{kind}", f"{stem}.norm.{kind}")
        known = next((candidate for candidate in candidates if candidate in targets), key)
        if known.startswith(("encoder.", "decoder.")):
            named[known] = tensor
    return named


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(f"{prefix}.")}


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside a ``torch.compile`` wrapper."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module
