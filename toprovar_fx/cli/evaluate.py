"""`toprovar eval`: SceneEval, fidelity, FLOPs and time of presets, beside dense."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from ..evaluation import timing
from . import figures
from .loading import check_dtype, check_model, load
from .progress import progress
from .values import MODEL, check_count, check_device, check_seed
from .variants import Variant, parse_variant, room_for_graphs

if TYPE_CHECKING:
    from ..pipeline import InfinityPipeline
    from ..scenes.prompts import EvalPrompt

DENSE = "dense"
MOST_PROMPTS = 100_000


@dataclass
class Tally:
    """What is gathered of one preset, one entry per image."""

    passed: list[bool] = field(default_factory=list)
    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    kept_share: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)

    def summary(self, prompts: Sequence[EvalPrompt], dense: Tally) -> dict[str, Any]:
        """Return the means; ``prompts`` are those of the images."""
        from ..evaluation import EvalReport

        report = EvalReport.from_scores(self.passed, prompts)
        gains = [int(own) - int(other) for own, other in zip(self.passed, dense.passed, strict=True)]
        changed = [value for value in self.psnr_db if math.isfinite(value)]
        return {
            "overall": report.overall,
            "overall_standard_error": _standard_error([float(value) for value in self.passed]),
            "overall_minus_dense": statistics.mean(gains),
            "overall_minus_dense_standard_error": _standard_error([float(gain) for gain in gains]),
            "categories": report.categories,
            # Identical images have no finite PSNR: they are counted instead.
            "psnr_db": statistics.mean(changed) if changed else None,
            "identical_images": len(self.psnr_db) - len(changed),
            "ssim": statistics.mean(self.ssim),
            "flops": statistics.mean(self.flops) if self.flops else None,
            "kept_share": statistics.mean(self.kept_share) if self.kept_share else None,
            "latency_ms": statistics.median(self.latency_ms),
        }


def evaluate(
    presets: Sequence[str] = (),
    *,
    n: int = 120,
    seed: int = 0,
    batch: int = 4,
    held_out: bool = False,
    model: str = MODEL,
    device: str | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Draw ``n`` evaluation prompts with every preset and dense, same seeds, and return what `--json` prints.

    ``flops`` and ``latency_ms`` are per image. The figures of the first preset also stand at the top level.

    Raises:
        ToProVARError: an input is not valid.
    """
    check_model(model)
    check_count("n", n, MOST_PROMPTS)
    check_count("batch", batch)
    check_seed(seed, n)
    if len(set(presets)) < len(presets):
        raise OptionError(f"--preset {' --preset '.join(presets)}: expected each once")
    variants = {name: parse_variant(name) for name in presets if name != DENSE}
    device = check_device(device)
    check_dtype(dtype)
    from ..scenes import eval_prompts

    prompts = eval_prompts(n, held_out=held_out)
    with progress("loading", doing=model):
        dense = load(model, device, dtype, min(batch, n))
    pipes = {name: variant.pipeline(dense) for name, variant in {DENSE: Variant("eager"), **variants}.items()}
    tallies = run(pipes, prompts, seed=seed, batch=min(batch, n), device=device)
    tallies[DENSE].flops = [figures.count_dense_flops(dense, prompts[0].text)]
    summaries = {name: tally.summary(prompts, tallies[DENSE]) for name, tally in tallies.items()}
    first = next((name for name in presets if name != DENSE), DENSE)
    return {
        "command": "eval",
        "model": model,
        "device": device,
        "n": n,
        "seed": seed,
        "batch": min(batch, n),
        "held_out": held_out,
        "preset": first,
        **summaries[first],
        "presets": summaries,
    }


def run(
    pipes: Mapping[str, InfinityPipeline],
    prompts: Sequence[EvalPrompt],
    *,
    seed: int,
    batch: int,
    device: str,
) -> dict[str, Tally]:
    """Draw every prompt with every pipeline and score each image; the first pipeline is the reference.

    The pipelines take turns batch by batch. One batch of each is drawn and thrown away before, so that no
    time holds a compilation; the last batch is filled up with its last prompt, so that no shape is new.
    """
    from ..evaluation import score_images

    tallies = {name: Tally() for name in pipes}
    starts = range(0, len(prompts), batch)
    with (
        room_for_graphs(len(pipes)),
        progress("evaluating", len(pipes) * (len(starts) + 1), doing="compiling") as advance,
    ):
        for name, pipe in pipes.items():
            pipe([prompt.text for prompt in _filled(prompts, 0, batch)], seed=seed)
            advance(f"compiled {name}")
        for start in starts:
            group = _filled(prompts, start, batch)
            real = min(batch, len(prompts) - start)
            texts = [prompt.text for prompt in group]
            seeds = [seed + start + min(index, real - 1) for index in range(batch)]
            reference: NDArray[np.uint8] | None = None
            for name, pipe in pipes.items():
                timing.synchronize(device)
                began = time.perf_counter()
                output = pipe(texts, seed=seeds)
                timing.synchronize(device)
                elapsed_ms = (time.perf_counter() - began) * 1000
                images = figures.images(output)[:real]
                reference = images if reference is None else reference
                tally = tallies[name]
                tally.passed += [bool(passed) for passed in score_images(images, group[:real])]
                psnr_db, ssim = figures.fidelity(reference, images)
                tally.psnr_db += psnr_db
                tally.ssim += ssim
                flops, kept = figures.flops(output), figures.kept_share(output)
                if flops is not None and kept is not None:
                    tally.flops += [flops] * real
                    tally.kept_share += [kept] * real
                tally.latency_ms += [elapsed_ms / batch] * real
                advance(name)
    return tallies


def _filled(prompts: Sequence[EvalPrompt], start: int, batch: int) -> list[EvalPrompt]:
    group = list(prompts[start : start + batch])
    return group + [group[-1]] * (batch - len(group))


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
