"""The memory that a model will need, known before anything of it is read but its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoints import module_bytes
from ..models.cache import DEFAULT_LAYOUT
from ..models.cache_memory import CacheSizes
from ..models.configs import InfinityConfig, config_named
from ..models.infinity import Infinity
from ..models.text_encoder import SceneTextEncoder, default_t5_dtype, require_transformers
from ..models.vae import VAE_CONFIGS, ImageVAE, VAEConfig
from ..official_parts import check_parts
from ..pipeline_files import described_parts, pipeline_files
from ..placement import placement
from ..scenes.vocab import VOCAB_SIZE
from ..schedules import Schedule
from .headers import read_header
from .layouts import find_parts
from .writing import gib

_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a pipeline takes on its device.

    Attributes:
        weights_bytes: by part: ``transformer``, ``autoencoder`` and, if there is one, ``text encoder``.
        cache_bytes: keys and values of a generation, in the layout that pipelines start with.
        images: in that generation.
        available_bytes: free on the device; None where that is not known.
        device: where the model will be.
        dtype: of the weights and the cache.
    """

    weights_bytes: Mapping[str, int]
    cache_bytes: int
    images: int
    available_bytes: int | None
    device: torch.device
    dtype: torch.dtype

    @property
    def total_bytes(self) -> int:
        """Weights and cache; activations come on top."""
        return sum(self.weights_bytes.values()) + self.cache_bytes

    def __str__(self) -> str:
        """Say all of it in one line."""
        parts = ", ".join(f"{part} {gib(size)}" for part, size in self.weights_bytes.items())
        of = "1 image" if self.images == 1 else f"{self.images} images"
        dtype = str(self.dtype).removeprefix("torch.")
        text = (
            f"{gib(self.total_bytes)} needed on {self.device} in {dtype}: {parts}, keys and values of {of} "
        )
        text += gib(self.cache_bytes)
        if self.available_bytes is None:
            return text
        short = ", which is not enough" if self.available_bytes < self.total_bytes else ""
        return f"{text}; {gib(self.available_bytes)} free{short}"


def memory_needed(
    name_or_path: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    images: int = 1,
) -> MemoryNeed:
    """Price what ``InfinityPipeline.from_pretrained`` would load, from headers alone.

    Args:
        name_or_path: as there.
        device: as there.
        dtype: as there.
        images: drawn together, each with and without guidance.

    Raises:
        CheckpointError: as there; keys and shapes that do not fit are found here already.
        OptionError: as there.
    """
    device, dtype = placement(device, dtype, present=False)
    files = pipeline_files(name_or_path)
    if files is not None:
        modules, schedule = described_parts(files, dtype)
        text_bytes = module_bytes(modules.text_encoder)
        config, vae = modules.transformer.config, modules.vae.config
        return _priced(config, vae, schedule, text_bytes, device, dtype, images)
    parts = find_parts(Path(name_or_path))
    with torch.device("meta"):
        check_parts(parts, Infinity(parts.config), ImageVAE(parts.vae_config))
    text_bytes = 0
    if parts.text_encoder is not None:
        require_transformers()
        text_bytes = t5_bytes(parts.text_encoder, default_t5_dtype(device))
    return _priced(parts.config, parts.vae_config, parts.schedule, text_bytes, device, dtype, images)


def memory_of_named(
    name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None, images: int = 1
) -> MemoryNeed:
    """Price a model with random weights by its name.

    Raises:
        OptionError: unknown name.
    """
    device, dtype = placement(device, dtype, present=False)
    config, text_bytes, schedule = config_named(name), 0, Schedule.infinity()
    if name == "scenes":
        schedule = Schedule.named(name)
        with torch.device("meta"):
            text_bytes = module_bytes(SceneTextEncoder(VOCAB_SIZE, width=config.text_channels), dtype)
    return _priced(config, VAE_CONFIGS[name], schedule, text_bytes, device, dtype, images)


def t5_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the bytes of the encoder of a T5; its decoder is not loaded, its embedding is there once."""
    header = read_header(folder)
    return sum(
        info.bytes_as(dtype)
        for key, info in header.items()
        if key == "shared.weight"
        or (key.startswith("encoder.") and not key.startswith("encoder.embed_tokens"))
    )


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device; of a CPU what Linux can give without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _priced(
    config: InfinityConfig,
    vae: VAEConfig,
    schedule: Schedule,
    text_bytes: int,
    device: torch.device,
    dtype: torch.dtype,
    images: int,
) -> MemoryNeed:
    with torch.device("meta"):
        weights = {
            "transformer": module_bytes(Infinity(config), dtype),
            "autoencoder": module_bytes(ImageVAE(vae), dtype),
        }
    if text_bytes:
        weights["text encoder"] = text_bytes
    rows = images * (1 if config.cfg == 1 else 2)
    sizes = CacheSizes.of(
        config,
        rows,
        schedule.ends[-1],
        dtype,
        layout=DEFAULT_LAYOUT if device.type == "cuda" else "plain",
        kept_tokens=schedule.tokens_before_last,
    )
    return MemoryNeed(
        weights_bytes=weights,
        cache_bytes=sizes.memory_bytes(),
        images=images,
        available_bytes=available_bytes(device),
        device=device,
        dtype=dtype,
    )
