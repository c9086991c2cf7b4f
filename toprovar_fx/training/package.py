"""Join exported modules into the pipeline files that are shipped with the package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .sample_eval import assemble
from .settings import TransformerSettings
from .tokenizer import load_tokenizer
from .transformer import Pair, load_pair

# Files of this size pass the limits of code hosts and of transfers.
_SHARD_BYTES = 14 * 2**20


def package(export: Path, settings: TransformerSettings, out: Path, cfg: float, tau: float) -> dict[str, Any]:
    """Write a pipeline file (in shards) from the folders of a training run.

    Args:
        export: folder with `vae`, `transformer` and `text_encoder`.
        settings: sizes of the transformer.
        out: path that ends in `.safetensors`.
        cfg: default guidance to store with the model.
        tau: default temperature to store with the model.
    """
    device = torch.device("cpu")
    settings = replace(settings, model=replace(settings.model, cfg=cfg, tau=tau))
    pair = Pair(settings).eval()
    load_pair(pair, export)
    pipe = assemble(pair, load_tokenizer(export, device), torch.float32)
    files = pipe.save_pretrained(out, dtype=torch.float16, shard_bytes=_SHARD_BYTES)
    return {"files": [str(file) for file in files], "bytes": sum(file.stat().st_size for file in files)}
