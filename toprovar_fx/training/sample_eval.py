"""Score generated images with SceneEval at the end of a training run."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..evaluation.scene_eval import EvalReport, score_images
from ..models.vae import ImageVAE
from ..pipeline import InfinityPipeline
from ..scenes.prompts import EvalPrompt, eval_prompts, scenes_for_prompts
from ..scenes.render import render
from ..schedules import Schedule
from .precision import mixed
from .transformer import Pair

# Guidance and temperature tried by a sweep: the range in which the feasibility run had its optimum.
SWEEP = tuple((cfg, tau) for cfg in (1.5, 2.0, 3.0, 4.0) for tau in (0.6, 1.0))

Images = NDArray[np.uint8]


def assemble(pair: Pair, vae: ImageVAE, dtype: torch.dtype) -> InfinityPipeline:
    """Build a pipeline of trained modules, which are cast to `dtype` in place."""
    pipe = InfinityPipeline(pair.transformer, vae, pair.text_encoder, Schedule.named("scenes"))
    return pipe.to(dtype=dtype)


def score_chunk(images: Images, prompts: Sequence[EvalPrompt]) -> list[bool]:
    """Score images ``[B, 256, 256, 3]`` in a worker process."""
    return list(score_images(images, prompts))


def generate(
    pipe: InfinityPipeline,
    prompts: Sequence[EvalPrompt],
    *,
    cfg: float,
    tau: float,
    batch: int,
    seed: int = 0,
) -> Iterator[tuple[Images, Sequence[EvalPrompt]]]:
    """Yield batches of images ``[B, 256, 256, 3]`` with their prompts; prompt i uses ``seed + i``."""
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        output = pipe([prompt.text for prompt in part], seed=seed + start, cfg=cfg, tau=tau)
        yield output.images, part


def evaluate(
    pipe: InfinityPipeline,
    prompts: Sequence[EvalPrompt],
    pool: ProcessPoolExecutor,
    *,
    cfg: float,
    tau: float,
    batch: int = 200,
    chunk: int = 25,
) -> dict[str, Any]:
    """Generate and score; scoring runs in the pool while the next batch is generated.

    Returns:
        ``overall`` (mean of the categories), ``categories``, ``images``, ``cfg``, ``tau``, ``seconds``.
    """
    began = time.monotonic()
    waiting: list[Future[list[bool]]] = []
    for images, part in generate(pipe, prompts, cfg=cfg, tau=tau, batch=batch):
        for start in range(0, len(part), chunk):
            stop = start + chunk
            waiting.append(pool.submit(score_chunk, images[start:stop], list(part[start:stop])))
    report = EvalReport.from_scores([score for future in waiting for score in future.result()], prompts)
    return _summary(report) | {"cfg": cfg, "tau": tau, "seconds": round(time.monotonic() - began, 1)}


def _summary(report: EvalReport) -> dict[str, Any]:
    categories = {name: round(score, 4) for name, score in report.categories.items()}
    return {"overall": round(report.overall, 4), "categories": categories, "images": report.n}


@torch.no_grad()
def evaluate_tokenizer(
    vae: ImageVAE, *, prompts: int, workers: int, samples: Path | None = None, batch: int = 64
) -> dict[str, Any]:
    """Score ground-truth scenes after a pass through the tokenizer: the ceiling of every generator.

    Args:
        vae: trained tokenizer.
        prompts: number of scenes.
        workers: scoring processes.
        samples: write a sheet of the first reconstructions to this PNG file.
        batch: images at once.
    """
    device = next(vae.parameters()).device
    wanted = eval_prompts(prompts)
    scenes = scenes_for_prompts(wanted, device=device)
    parts = []
    for start in range(0, prompts, batch):
        with mixed(device):
            output = vae(render(scenes[start : start + batch]))
        parts.append(to_bytes(output))
    images = np.concatenate(parts)
    with scoring_pool(workers) as pool:
        starts = range(0, prompts, 25)
        waiting = [pool.submit(score_chunk, images[i : i + 25], wanted[i : i + 25]) for i in starts]
        scores = [score for future in waiting for score in future.result()]
    if samples is not None:
        write_sheet(images[:24], samples)
    return {"phase": "evaluate tokenizer"} | _summary(EvalReport.from_scores(scores, wanted))


def to_bytes(images: Tensor) -> Images:
    """Images ``[B, 3, H, W]`` in [-1, 1] to ``[B, H, W, 3]`` uint8 in CPU memory."""
    scaled = images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return np.asarray(scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy(), dtype=np.uint8)


def scoring_pool(workers: int) -> ProcessPoolExecutor:
    """Processes for `score_chunk`; forking instead would copy a process that holds a device."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def evaluate_pair(
    pair: Pair, vae: ImageVAE, *, prompts: int, sweep: int, workers: int, samples: Path | None = None
) -> dict[str, Any]:
    """Evaluate trained modules at the defaults of their configuration, or at the best point of a sweep.

    Args:
        pair: trained transformer and text encoder; cast to bfloat16 in place on CUDA.
        vae: trained tokenizer, cast likewise.
        prompts: number of prompts, also for the held-out combinations.
        sweep: number of prompts for each point of `SWEEP`; 0 leaves the sweep out.
        workers: scoring processes.
        samples: write a sheet of the first 24 images to this PNG file.
    """
    cuda = pair.transformer.device.type == "cuda"
    pipe = assemble(pair, vae, torch.bfloat16 if cuda else torch.float32)
    batch = 200 if cuda else 8
    report: dict[str, Any] = {"phase": "evaluate"}
    with scoring_pool(workers) as pool:
        cfg, tau = pipe.config.cfg, pipe.config.tau
        if sweep:
            # Other prompts than those of the final score, so that the choice does not flatter it.
            chosen = eval_prompts(sweep, seed=1)
            tried = [evaluate(pipe, chosen, pool, cfg=c, tau=t, batch=batch) for c, t in SWEEP]
            report["sweep"] = [{key: row[key] for key in ("cfg", "tau", "overall")} for row in tried]
            best = max(tried, key=lambda row: row["overall"])
            cfg, tau = best["cfg"], best["tau"]
        report |= evaluate(pipe, eval_prompts(prompts), pool, cfg=cfg, tau=tau, batch=batch)
        held_out = evaluate(pipe, eval_prompts(prompts, held_out=True), pool, cfg=cfg, tau=tau, batch=batch)
        report["held_out"] = {key: held_out[key] for key in ("overall", "categories")}
    if samples is not None:
        images, _ = next(generate(pipe, eval_prompts(24), cfg=cfg, tau=tau, batch=24))
        write_sheet(images, samples)
    return report


def write_sheet(images: Images, path: Path, columns: int = 6) -> None:
    """Write images ``[B, H, W, 3]`` side by side, row by row, as one PNG file; whole rows only."""
    from PIL import Image

    rows = max(1, len(images) // columns)
    columns = min(columns, len(images))
    count, (height, width) = rows * columns, images.shape[1:3]
    sheet = images[:count].reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.reshape(rows * height, columns * width, 3)).save(path)
