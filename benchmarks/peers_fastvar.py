"""FastVAR's own Infinity and ours with the same weights, scale by scale on the inputs that FastVAR drew."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.upstream_models import randomise
from benchmarks.upstream_settings import generation_settings, model_settings
from benchmarks.upstream_shims import clone_on_path, forget
from toprovar_fx.adapters.rebinding import rebound, torch_with
from toprovar_fx.backend import toprovar
from toprovar_fx.models.cache import KVCache
from toprovar_fx.models.cache_memory import CacheSizes
from toprovar_fx.models.configs import InfinityConfig
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.runtime.generation import Generation, generation
from toprovar_fx.schedules import Schedule

SIZES = InfinityConfig(
    depth=32,
    width=128,
    heads=2,
    bits=16,
    text_channels=256,
    text_maxlen=512,
    block_chunks=8,
    text_pool_heads=2,
    rope_grid=64,
)
TEXT_TOKENS, GUIDANCE, TEMPERATURE = 9, 3, 0.5
# Differences of sums of 128 and 512 products in float32, through 32 layers; cross-attention in bfloat16.
FULL, HALF = 1e-5, 5e-2


@dataclass
class Published:
    """One generation of the clone.

    Attributes:
        inputs, logits: per scale that ran, what entered the first block and what left the head, [2, L, .].
        keeps: by (scale, sublayer counted through), the kept tokens [2, K], ascending.
        codes: the code sum that went to the decoder.
    """

    inputs: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    keeps: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    codes: Tensor | None = None


class Clone:
    """FastVAR's Infinity with random weights; its quantiser is a stand-in, its decoder is not run."""

    def __init__(self, clone: Path, seed: int) -> None:
        folder = clone / "Infinity" if (clone / "Infinity").is_dir() else clone
        forget("infinity")
        probe = "infinity/models/fastvar_basic.py"
        with clone_on_path(folder, probe), contextlib.redirect_stdout(io.StringIO()):
            from infinity.models import basic, fastvar_basic
            from infinity.models.infinity import Infinity as Theirs
            from infinity.utils.dynamic_resolution import dynamic_resolution_h_w

            self.schedule = [(1, h, w) for _, h, w in dynamic_resolution_h_w[1.0]["1M"]["scales"]]
            self.tokenizer = SimpleNamespace(
                embed_dim=SIZES.bits,
                decode=self._decoded,
                quantizer=SimpleNamespace(
                    lfq=SimpleNamespace(mask=None, indices_to_codes=_codes), z_interplote_up="trilinear"
                ),
            )
            self.model: Any = Theirs(
                vae_local=self.tokenizer,
                text_channels=SIZES.text_channels,
                embed_dim=SIZES.width,
                depth=SIZES.depth,
                num_heads=SIZES.heads,
                pn="1M",
                block_chunks=SIZES.block_chunks,
                **model_settings(),
            ).eval()
        randomise(self.model, seed)
        self._basic: Any = fastvar_basic
        self._attentions = (basic.CrossAttention, fastvar_basic.CrossAttention)
        source = torch.Generator().manual_seed(seed)
        self.text = torch.randn(TEXT_TOKENS, SIZES.text_channels, generator=source)
        self._seen = Published()

    def generate(self, seed: int, full_precision: bool) -> Published:
        """Generate by the clone's own method.

        Args:
            seed: of the sampling.
            full_precision: lift the cast of cross-attention to bfloat16, which is made for flash-attn alone.
        """
        self._seen = Published()
        starts = torch.tensor([0, TEXT_TOKENS], dtype=torch.int32)
        count = len(self.schedule)
        with self._recorded(), self._casts_lifted() if full_precision else contextlib.nullcontext():
            self.model.autoregressive_infer_cfg(
                vae=self.tokenizer,
                scale_schedule=self.schedule,
                label_B_or_BLT=(self.text.clone(), [TEXT_TOKENS], starts, TEXT_TOKENS),
                B=1,
                g_seed=seed,
                cfg_list=[GUIDANCE] * count,
                tau_list=[TEMPERATURE] * count,
                vae_type=SIZES.bits,
                ret_img=True,
                **generation_settings(),
            )
        return self._seen

    def _decoded(self, codes: Tensor) -> Tensor:
        self._seen.codes = codes.clone()
        return codes[:, :3]

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        """Note what enters the first block, what each sublayer keeps and what leaves the head."""
        first, logits_of = self.model.unregistered_blocks[0], self.model.get_logits
        choose = self._basic.compute_merge
        calls = 0

        def entering(module: Any, args: Any, given: dict[str, Any]) -> None:
            self._seen.inputs.append(given["x"].clone())

        def get_logits(*args: Any) -> Tensor:
            self._seen.logits.append(logits_of(*args).clone())
            return self._seen.logits[-1].clone()

        def compute_merge(*args: Any, **given: Any) -> Any:
            nonlocal calls
            found = choose(*args, **given)
            place = divmod(calls, 3 * SIZES.depth)
            calls += 1
            if found[0].__name__ != "do_nothing":
                self._seen.keeps[place] = found[2]()[..., 0].sort(1).values
            return found

        handle = first.register_forward_pre_hook(entering, with_kwargs=True)
        vars(self.model)["get_logits"] = get_logits
        self._basic.compute_merge = compute_merge
        try:
            yield
        finally:
            handle.remove()
            del vars(self.model)["get_logits"]
            self._basic.compute_merge = choose

    @contextlib.contextmanager
    def _casts_lifted(self) -> Iterator[None]:
        own = [kind.forward for kind in self._attentions]
        for kind, forward in zip(self._attentions, own, strict=True):
            kind.forward = rebound(forward, {torch: torch_with(bfloat16=torch.float32)})
        try:
            yield
        finally:
            for kind, forward in zip(self._attentions, own, strict=True):
                kind.forward = forward


def _codes(indices: Tensor, label_type: str) -> Tensor:
    """Bits [B, 1, h, w, d] as codes [B, d, 1, h, w] of components +-1 / sqrt(d)."""
    return (indices.permute(0, 4, 1, 2, 3).float() * 2 - 1) / math.sqrt(indices.shape[-1])


class Ours:
    """Our Infinity with the clone's weights and the policy `fastvar`."""

    def __init__(self, clone: Clone, lowering: str) -> None:
        self.schedule = Schedule.infinity("1M")
        self.model = Infinity(SIZES).eval()
        own = self.model.state_dict()
        given = {name: value for name, value in clone.model.state_dict().items() if name in own}
        self.model.load_state_dict(given, strict=True)
        self.model.set_schedule(self.schedule)
        self.text = clone.text
        self.step: Callable[..., Tensor] = torch.compile(
            self.model, backend=toprovar, options={"policy": "fastvar", "lowering": lowering}
        )

    @torch.inference_mode()
    def run(self, inputs: list[Tensor]) -> tuple[list[Tensor], Generation]:
        """Logits [2, L, 2 bits] of every scale on the clone's inputs."""
        features = self.text[None].repeat(2, 1, 1)
        features = self.model.unconditional(features, torch.tensor([False, True]))
        context = self.model.prepare_text(features, torch.tensor([TEXT_TOKENS] * 2))
        cache = KVCache(CacheSizes.of(SIZES, 2, self.schedule.ends[-1]), "cpu")
        logits = []
        with generation(self.schedule, 1) as run:
            for scale in range(len(self.schedule)):
                if not run.begin_scale(scale):
                    break
                logits.append(self.step(inputs[scale], context, cache, self.schedule.ends[scale]))
        return logits, run


def compare(path: Path, seed: int, lowering: str) -> Iterator[tuple[str, str, str, bool | None]]:
    """Rows of (check, found, wanted, passed)."""
    clone = Clone(path, seed)
    ours = Ours(clone, lowering)
    for name, full in (("float32", True), ("its bfloat16", False)):
        theirs = clone.generate(seed, full)
        logits, run = ours.run(theirs.inputs)
        (controller,) = run.controllers
        ran = f"{len(logits)} of {len(ours.schedule)}, and {len(theirs.logits)}"
        yield f"{name}: scales that run, ours and theirs", ran, "equal", len(logits) == len(theirs.logits)
        kept = controller.ledger.keep_sets
        same = sum(torch.equal(kept[at], theirs.keeps[at]) for at in theirs.keeps if at in kept)
        shared = [_shared(kept[at], theirs.keeps[at]) for at in theirs.keeps if at in kept]
        text = f"{same} of {len(theirs.keeps)}, {min(shared, default=0):.4f} shared at least"
        equal = kept.keys() == theirs.keeps.keys() and same == len(kept)
        yield f"{name}: equal keep sets of sublayers", text, "all" if full else "-", equal if full else None
        worst = max(
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(logits, theirs.logits, strict=True)
        )
        limit = FULL if full else HALF
        yield f"{name}: logits, of the largest", f"{worst:.1e}", f"<= {limit:.0e}", worst <= limit
        fallbacks = controller.ledger.fallbacks
        yield f"{name}: fallbacks", str(len(fallbacks)), "0", not fallbacks


def _shared(left: Tensor, right: Tensor) -> float:
    """Share of kept tokens that both keep, the least over the rows."""
    return min(len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in zip(left, right, strict=True))
