"""The parts of a pipeline: loaded, saved and moved together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .between_scales import BetweenScales
from .errors import OptionError
from .models.cache import DEFAULT_LAYOUT, CacheShelf
from .models.cache_layout import CacheLayout
from .models.configs import InfinityConfig
from .models.infinity import Infinity
from .models.text_encoder import T5TextEncoder, TextEncoder
from .models.vae import ImageVAE
from .placement import lay_out, placement
from .recorded_decoder import RecordedDecoder
from .schedules import Schedule

if TYPE_CHECKING:
    from .pipeline import InfinityPipeline

Components = TypeVar("Components", bound="PipelineComponents")


class PipelineComponents:
    """What an `InfinityPipeline` draws with.

    Attributes:
        transformer: the ``Infinity`` model or a compiled wrapper of it.
        vae: quantiser and image decoder.
        text_encoder: turns prompts into features; None if only features are ever given.
        schedule: the scales to run; assign another one for another resolution.
        cache_layout: how keys and values lie in memory: ``"plain"``, ``"token_major"``, or ``"shared"``: on
            CUDA the layers then share the memory of the last scale's.
    """

    def __init__(
        self, transformer: Infinity, vae: ImageVAE, text_encoder: TextEncoder | None, schedule: Schedule
    ) -> None:
        """Assemble a pipeline of components on one device."""
        self.transformer: Any = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.schedule = schedule
        self.cache_layout: CacheLayout = DEFAULT_LAYOUT
        if transformer.config.latent_bits != vae.config.z_channels:
            raise OptionError(
                f"autoencoder with {vae.config.z_channels} latent channels: expected the transformer's "
                f"{transformer.config.latent_bits} bits per latent pixel"
            )
        lay_out(vae.decoder)
        self._caches = CacheShelf()
        self._between: BetweenScales | None = None
        self._decoding: RecordedDecoder | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "scenes",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> InfinityPipeline:
        """Load a shipped model by name, a pipeline file, or a folder with official checkpoints.

        Nothing is downloaded, and no code in a file is ever run.

        Args:
            name_or_path: ``"scenes"``; the path of a ``.safetensors`` file of ``save_pretrained``
                (also if it was written as shards); a folder in the official layout (one transformer, its
                autoencoder, and the T5 encoder in a folder of its own if there is one) or written by
                ``toprovar convert``; or one official transformer, the other parts beside it.
            device: CUDA if there is one, else the CPU.
            dtype: of the weights; bfloat16 on CUDA, else float32.

        Raises:
            CheckpointError: no such model or file, or it does not fit.
            OptionError: the folder has a T5 encoder, and the extra ``text`` is not installed.
        """
        from .pipeline_files import load_pipeline

        device, dtype = placement(device, dtype)
        return load_pipeline(name_or_path, dtype, device).to(device, dtype)

    @classmethod
    def from_official(
        cls,
        name: str,
        *,
        transformer: str | Path,
        vae: str | Path,
        text_encoder: str | Path | None = None,
        schedule: Schedule | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> InfinityPipeline:
        """Load official checkpoints from local files; nothing is downloaded.

        Args:
            name: ``"infinity-2b"`` or ``"infinity-8b"``.
            transformer: file or folder of shards.
            vae: file of the image autoencoder.
            text_encoder: folder of the T5 encoder; without it ``__call__`` takes ``TextFeatures``.
            schedule: square 1M pixels by default.
            device: CUDA if there is one, else the CPU.
            dtype: of the weights; bfloat16 on CUDA, else float32.

        Raises:
            OptionError: unknown name.
            CheckpointError: a file is missing, damaged or does not fit.
        """
        from .official_parts import load_official

        device, dtype = placement(device, dtype)
        pipe = load_official(name, transformer, vae, schedule or Schedule.infinity(), dtype)
        if text_encoder is not None:
            pipe.text_encoder = T5TextEncoder.from_folder(text_encoder, device=device)
        return pipe.to(device, dtype)

    @classmethod
    def untrained(
        cls,
        name: str = "scenes",
        *,
        schedule: Schedule | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> InfinityPipeline:
        """Build a model with random weights, for measuring speed or as the start of training.

        Raises:
            OptionError: unknown name.
        """
        from .pipeline_files import untrained_pipeline

        device, dtype = placement(device, dtype)
        with torch.device(device):
            return untrained_pipeline(name, schedule).to(device, dtype)

    def save_pretrained(
        self, path: str | Path, dtype: torch.dtype | None = None, shard_bytes: int | None = None
    ) -> list[Path]:
        """Write weights and configuration so that ``from_pretrained(path)`` reads them.

        Args:
            path: ends in ``.safetensors``.
            dtype: to which floating-point weights are cast; None keeps theirs.
            shard_bytes: largest size of a file's tensors; None writes one file.

        Returns:
            The files: ``path`` itself or its numbered shards.

        Raises:
            CheckpointError: another suffix, the text encoder is no ``SceneTextEncoder``, or no such dtype or
                size can be.
            OutputError: a file cannot be written; no part of it is left.
        """
        from .pipeline_files import save_pipeline

        return save_pipeline(self, Path(path), dtype, shard_bytes)

    @property
    def config(self) -> InfinityConfig:
        """Sizes and sampling defaults of the transformer."""
        return self.transformer.config

    @property
    def device(self) -> torch.device:
        """Device on which images are generated."""
        return self.transformer.device

    def to(
        self: Components, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Components:
        """Move and cast the components; returns the pipeline itself."""
        for module in (self.transformer, self.vae, self.text_encoder):
            if isinstance(module, torch.nn.Module):
                module.to(device=device, dtype=dtype).eval()
        if device is not None and isinstance(self.text_encoder, T5TextEncoder):
            self.text_encoder.to(device)  # its dtype is its own: official features come from float16
        self._caches = CacheShelf()
        lay_out(self.vae.decoder)
        return self
