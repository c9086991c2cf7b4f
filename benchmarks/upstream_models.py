"""Upstream VAR and Infinity with random weights, and one generation of each as numbers that can be compared.

The image decoder is the one part that is not run: its input is what is compared. All else is upstream's code.
"""

from __future__ import annotations

import contextlib
import io
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.upstream_settings import generation_settings, model_settings
from benchmarks.upstream_shims import clone_on_path, nothing_compiled_on_import


@dataclass
class Outcome:
    """One generation: the logits of every scale that ran, and the code sum that went to the decoder."""

    logits: list[Tensor] = field(default_factory=list)
    codes: Tensor = field(default_factory=lambda: torch.empty(0))

    def equals(self, other: Outcome) -> bool:
        """Bit for bit."""
        return torch.equal(self.codes, other.codes) and all(map(torch.equal, self.logits, other.logits))

    def deviation(self, other: Outcome) -> float:
        """Largest absolute difference of logits and code sum."""
        pairs = [(self.codes, other.codes), *zip(self.logits, other.logits, strict=True)]
        return max(float((left - right).abs().max()) for left, right in pairs)


class Upstream(ABC):
    """A model of an upstream repository.

    Attributes:
        name: for the table.
        model: with random weights, in evaluation mode.
        sides: sides of its token maps.
        rounds: whether its own code rounds float32 values to bfloat16.
    """

    name: str
    model: Any  # of a class of the clone
    sides: tuple[tuple[int, int], ...]
    rounds = False

    def __init__(self) -> None:
        self._outcome = Outcome()
        self._fail_at: int | None = None
        logits_of = self.model.get_logits

        def get_logits(*args: Any) -> Tensor:
            if len(self._outcome.logits) == self._fail_at:
                raise KeyboardInterrupt("as if the user had stopped the generation")
            result = logits_of(*args)
            self._outcome.logits.append(result.clone())
            return result

        vars(self.model)["get_logits"] = get_logits

    def generate(self, images: int = 1, seed: int = 0, fail_at: int | None = None) -> Outcome:
        """Generate by upstream's own method; `fail_at`: stop with an exception after that many scales."""
        self._outcome, self._fail_at = Outcome(), fail_at
        self.call(images, seed)
        return self._outcome

    def decoded(self, codes: Tensor) -> Tensor:
        """Stand in for the decoder."""
        self._outcome.codes = codes.clone()
        return codes[:, :3]

    @abstractmethod
    def call(self, images: int, seed: int) -> None:
        """Call upstream's generation method."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The blocks in order."""


class UpstreamVAR(Upstream):
    """FoundationVision/VAR at 256 pixels."""

    def __init__(self, clone: Path, depth: int = 16, scales: int = 10) -> None:
        patch_nums = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)[:scales]
        with clone_on_path(clone, "models/var.py"), contextlib.redirect_stdout(io.StringIO()):
            import models

            with _resets_kept():
                vae, self.model = models.build_vae_var("cpu", patch_nums=patch_nums, depth=depth)
        self.name = f"VAR-d{depth}, {16 * patch_nums[-1]} px"
        self.sides = tuple((side, side) for side in patch_nums)
        randomise(vae, 0)
        randomise(self.model.eval(), 1)
        vars(vae)["fhat_to_img"] = self.decoded
        super().__init__()

    def call(self, images: int, seed: int) -> None:
        labels = torch.arange(images) + 10 * seed
        self.model.autoregressive_infer_cfg(
            B=images, label_B=labels, g_seed=seed, cfg=4, top_k=900, top_p=0.95
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.model.blocks)


class _Tokenizer:
    """What Infinity wants of its image autoencoder: upstream's quantiser, and a decoder."""

    def __init__(self, quantizer: nn.Module, bits: int, decode: Any) -> None:
        self.quantizer, self.embed_dim, self.decode = quantizer, bits, decode


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


class UpstreamInfinity(Upstream):
    """FoundationVision/Infinity, as its scripts build it; its compiled norms run as written.

    Upstream rounds float32 queries, keys and values of cross-attention to bfloat16. Whatever computes them in
    another order ends 1e-3 away and draws other bits a few scales later. With `unrounded`, a query projection
    in float64 leads past that branch of upstream's code, and what differs is the compiler's.
    """

    BITS, TEXT, BUDGETS = 32, 2048, {7: "0.06M", 10: "0.25M", 12: "0.60M", 13: "1M"}

    def __init__(
        self, clone: Path, depth: int = 12, scales: int = 10, fused_norm: bool = True, unrounded: bool = False
    ) -> None:
        with (
            clone_on_path(clone, "infinity/models/infinity.py"),
            nothing_compiled_on_import(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            from infinity.models.bsq_vae.multiscale_bsq import MultiScaleBSQ
            from infinity.models.infinity import infinity_layer12
            from infinity.utils.dynamic_resolution import dynamic_resolution_h_w

            budget = self.BUDGETS[scales]
            schedule = dynamic_resolution_h_w[1.0][budget]["scales"]
            self.schedule = [(1, height, width) for _, height, width in schedule]
            quantizer = MultiScaleBSQ(dim=self.BITS, codebook_size=2**self.BITS)
            self.tokenizer = _Tokenizer(quantizer.eval(), self.BITS, self.decoded)
            self.model = infinity_layer12(
                depth=depth,
                vae_local=self.tokenizer,
                text_channels=self.TEXT,
                checkpointing="full-block",
                pn=budget,
                **model_settings(fused_norm),
                block_chunks=depth // 2 if depth > 3 else depth,
            )
        norms = "" if fused_norm else ", fused_norm=False"
        self.rounds = not unrounded
        rounded = ", unrounded" if unrounded else ""
        self.name = f"Infinity, {depth} layers, {budget}{norms}{rounded}"
        self.sides = tuple((height, width) for _, height, width in self.schedule)
        randomise(self.model.eval(), 1)
        if unrounded:
            blocks: list[Any] = self.blocks()
            for block in blocks:
                block.ca.mat_q = nn.Sequential(block.ca.mat_q, _Cast(torch.float64))
                block.ca.proj = nn.Sequential(_Cast(torch.float32), block.ca.proj)
        super().__init__()

    def call(self, images: int, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        lengths = [7 + 3 * image + seed for image in range(images)]
        text = torch.randn(sum(lengths), self.TEXT, generator=source)
        starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        self.model.autoregressive_infer_cfg(
            vae=self.tokenizer,
            scale_schedule=self.schedule,
            label_B_or_BLT=(text, lengths, starts, max(lengths)),
            B=images,
            g_seed=seed,
            cfg_list=[3] * len(self.schedule),
            tau_list=[0.5] * len(self.schedule),
            vae_type=32,
            ret_img=True,
            **generation_settings(),
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.model.unregistered_blocks)


def randomise(module: nn.Module, seed: int) -> None:
    """Weights of unit gain, and biases, gates and scales away from zero, so that every branch matters."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=source)
            if parameter.dim() >= 2 and parameter.shape[0] > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.3 * noise)


@contextlib.contextmanager
def _resets_kept() -> Any:
    """Undo what `build_vae_var` does to torch's layer classes for the whole process."""
    kinds = [getattr(nn, name) for name in dir(nn) if hasattr(getattr(nn, name), "reset_parameters")]
    before = [(kind, vars(kind).get("reset_parameters")) for kind in kinds]
    try:
        yield
    finally:
        for kind, method in before:
            if method is not None:
                kind.reset_parameters = method
            elif "reset_parameters" in vars(kind):
                del kind.reset_parameters
