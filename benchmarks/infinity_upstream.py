"""Upstream Infinity, and FastVAR's fork of it, as rows of `benchmarks.infinity`: their own code from a clone.

Weights are random. Blocks run in bfloat16 under autocast as their scripts do, norms are compiled by upstream
itself, and flash-attn is replaced by stock attention that makes the host wait for nothing.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.upstream_settings import generation_settings, model_settings
from benchmarks.upstream_shims import clone_on_path
from toprovar_fx.evaluation.timing import synchronize

SIZES: dict[str, dict[str, Any]] = {
    "2b": {"depth": 32, "embed_dim": 2048, "num_heads": 16, "block_chunks": 8},
    "8b": {"depth": 40, "embed_dim": 3584, "num_heads": 28, "block_chunks": 8},
    "tiny": {"depth": 4, "embed_dim": 64, "num_heads": 2, "block_chunks": 2},
}
PROMPT_TOKENS = 50


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, **_: Any) -> Tensor:
    """Attention of [B, L, H, E]."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)


def flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, *, cu_seqlens_k: Tensor, max_seqlen_k: int, softmax_scale: float, **_: Any
) -> Tensor:
    """Attention of packed queries to texts that are all of one length, as they are here."""
    rows = len(cu_seqlens_k) - 1
    keys, values = kv.unflatten(0, (rows, max_seqlen_k)).unbind(2)
    q, k, v = (part.transpose(1, 2) for part in (q.unflatten(0, (rows, -1)), keys, values))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
    return mixed.transpose(1, 2).flatten(0, 1)


@contextlib.contextmanager
def _drawn_in_place() -> Iterator[None]:
    """Let initial values be drawn where the parameters are: upstream names a generator on the CPU."""
    draw = torch.nn.init.trunc_normal_

    def anywhere(tensor: Tensor, *given: Any, generator: object = None, **named: Any) -> Tensor:
        return draw(tensor, *given, **named)

    with mock.patch.object(torch.nn.init, "trunc_normal_", anywhere):
        yield


class _Tokenizer:
    """What upstream wants of its image autoencoder: the quantiser; the decoder is not measured."""

    def __init__(self, quantizer: Any, bits: int) -> None:
        self.quantizer, self.embed_dim = quantizer, bits

    def decode(self, codes: Tensor) -> Tensor:
        return codes[:, :3]


class UpstreamTransformer:
    """A clone's model, which runs a generation by its own method.

    Args:
        clone: its folder.
        size: of `SIZES`.
        device: where it runs.
        compiled: whether its blocks are compiled by Inductor, with sizes as symbols.
    """

    def __init__(self, clone: Path, size: str, device: str, compiled: bool = False) -> None:
        self.device = device
        for name in [name for name in sys.modules if name.partition(".")[0] == "infinity"]:
            del sys.modules[name]
        patchify = size == "8b"
        self.bits = 14 if patchify else 32
        with (
            clone_on_path(clone, "infinity/models/infinity.py"),
            contextlib.redirect_stdout(io.StringIO()),
            _drawn_in_place(),
        ):
            from infinity.models import basic
            from infinity.models import infinity as upstream
            from infinity.models.bsq_vae.multiscale_bsq import MultiScaleBSQ
            from infinity.utils import dist
            from infinity.utils.dynamic_resolution import dynamic_resolution_h_w

            # Where upstream makes its generator of random numbers; its own set-up is for clusters.
            vars(dist)["__device"] = device
            for module in (basic, sys.modules.get("infinity.models.fastvar_basic")):
                if module is not None:
                    vars(module)["flash_attn_func"] = flash_attn_func
                    vars(module)["flash_attn_varlen_kvpacked_func"] = flash_attn_varlen_kvpacked_func
            budget = "0.06M" if size == "tiny" else "1M"
            scales = dynamic_resolution_h_w[1.0][budget]["scales"]
            self.schedule = [(1, height, width) for _, height, width in scales]
            quantizer = MultiScaleBSQ(dim=self.bits, codebook_size=2**self.bits).eval().to(device)
            self.tokenizer = _Tokenizer(quantizer, self.bits)
            with torch.device(device):
                self.model = upstream.Infinity(
                    vae_local=self.tokenizer,
                    text_channels=2048,
                    raw_scale_schedule=self.schedule,
                    checkpointing="full-block",
                    customized_flash_attn=False,
                    pn=budget,
                    apply_spatial_patchify=int(patchify),
                    **model_settings(),
                    mlp_ratio=4,
                    drop_path_rate=0.1,
                    **SIZES[size],
                )
        self.model.to(device).eval().requires_grad_(False)
        if device == "cuda":
            for block in self.model.unregistered_blocks:
                block.bfloat16()
        if compiled:
            for block in self.model.unregistered_blocks:
                block.compile(dynamic=True)
        self._scale_done: Callable[[], None] = lambda: None
        logits_of = self.model.get_logits

        def get_logits(*args: Any) -> Tensor:
            result = logits_of(*args)
            self._scale_done()
            return result

        vars(self.model)["get_logits"] = get_logits

    def run(self, clock: Any, images: int, seed: int) -> tuple[float, float]:
        """One generation; the clock is marked at the start and after the logits of every scale.

        Returns:
            Milliseconds of all of it, and until the last work was enqueued.
        """
        source = torch.Generator().manual_seed(seed)
        text = torch.randn(images * PROMPT_TOKENS, 2048, generator=source).to(self.device)
        lengths = [PROMPT_TOKENS] * images
        starts = torch.arange(images + 1, dtype=torch.int32, device=self.device) * PROMPT_TOKENS
        self._scale_done = clock.mark
        synchronize(self.device)
        started = time.perf_counter()
        clock.mark()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"), torch.no_grad():
            self.model.autoregressive_infer_cfg(
                vae=self.tokenizer,
                scale_schedule=self.schedule,
                label_B_or_BLT=(text, lengths, starts, PROMPT_TOKENS),
                B=images,
                g_seed=seed,
                cfg_list=[4] * len(self.schedule),
                tau_list=[0.5] * len(self.schedule),
                vae_type=self.bits,
                ret_img=True,
                **generation_settings(),
            )
        host = time.perf_counter() - started
        synchronize(self.device)
        return 1e3 * (time.perf_counter() - started), 1e3 * host
