"""A paired study: option sets compared with dense on the same prompts and image seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scenes.prompts import EvalPrompt, eval_prompts
from .features import image_features, real_features
from .fidelity import frechet_distance, psnr, ssim
from .scene_eval import EvalReport, Verdict, judge_images

if TYPE_CHECKING:
    from ..pipeline import InfinityPipeline
    from ..runtime.report import GenerationReport

Images = NDArray[np.uint8]
# Images that one judge looks at in one go.
CHUNK = 25
# Seeds of the prompts; images of different splits have different seeds too.
SPLITS = {"test": 0, "tune": 1}
SEEDS_APART = 1_000_000
RUNS_APART = 100_000


@contextmanager
def judges(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that score images while the next ones are drawn."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool


@dataclass(frozen=True)
class BatchFacts:
    """What a study needs of the report of one batch, without the tensors that the report holds.

    Attributes:
        images: B.
        exited_at: first scale that was not run, or None.
        depth: the scale depth D, or None.
        flops: of the transformer for all images, as run.
        flops_dense: the same had nothing been pruned.
        roles: R by layer.
        rho: share of low entropies by scale.
        fire_rates: share of layer runs that were dense, tapped, pruned and skipped.
        alone: per image, what the policy would decide about it alone; see `Policy.alone`.
    """

    images: int
    exited_at: int | None
    depth: int | None
    flops: int
    flops_dense: int
    roles: Mapping[int, float]
    rho: Mapping[int, float]
    fire_rates: Mapping[str, float]
    alone: Sequence[Hashable] | None

    @staticmethod
    def of(report: GenerationReport) -> BatchFacts:
        """Read a report."""
        return BatchFacts(
            report.images,
            report.exited_at,
            report.depth,
            report.flops,
            report.flops_dense,
            dict(report.roles),
            dict(report.controller.ledger.rho),
            dict(report.fire_rates),
            report.controller.policy.alone(),
        )


@dataclass(frozen=True)
class Waiting:
    """An option set whose images are drawn and being judged.

    Attributes:
        options: the backend's options.
        seconds: time to draw all images.
        similarity: PSNR (None where all images are equal) and mean SSIM to the dense images.
        batches: one per batch.
        frechet: distance of the images' features to real ones', where that is wanted.
        verdicts: what the judges will say, in the order of the prompts.
    """

    options: Mapping[str, object]
    seconds: float
    similarity: tuple[float | None, float]
    batches: list[BatchFacts]
    verdicts: list[Future[list[Verdict]]]
    frechet: float | None


class PairedStudy:
    """Prompts, seeds and the dense images that every option set is compared with.

    The eager lowering is used: it computes what the compiled graphs compute, without compiling every set.

    Args:
        pipe: a pipeline whose transformer is not compiled.
        n: prompts; the six categories take turns.
        split: of `SPLITS`: "tune" to choose settings by, "test" to report them.
        batch: images that are drawn together.
        pool: the judges.
        run: other image seeds for the same prompts.
        frechet: measure the Frechet distance to ground-truth scenes in tokenizer features; or these features,
            as another study of the same prompts has them in ``real``.
    """

    def __init__(
        self,
        pipe: InfinityPipeline,
        n: int,
        split: str,
        batch: int,
        pool: ProcessPoolExecutor,
        run: int = 0,
        frechet: bool | Tensor = False,
    ) -> None:
        self.pipe, self.split, self.batch, self.pool = pipe, split, batch, pool
        self.prompts: list[EvalPrompt] = list(eval_prompts(n, seed=SPLITS[split]))
        self.first_seed = SPLITS[split] * SEEDS_APART + run * RUNS_APART
        self.real = frechet if isinstance(frechet, Tensor) else None
        if frechet is True:
            self.real = real_features(pipe.vae, self.prompts)
        self.eager = pipe.transformer
        self.dense, seconds, _ = self._generate()
        verdicts = _told(self._judge(self.dense))
        self.dense_scores = [verdict.passed for verdict in verdicts]
        self.baseline = self._summary(verdicts) | {
            "seconds": seconds,
            "frechet": self._frechet(self.dense),
        }

    def score(self, options: Mapping[str, object]) -> dict[str, Any]:
        """Draw and judge one option set."""
        return self.finish(self.start(options))

    def start(self, options: Mapping[str, object]) -> Waiting:
        """Draw the images of one option set and leave them with the judges."""
        from ..backend import toprovar

        torch.compiler.reset()
        given: Any = {"lowering": "eager", **options}
        self.pipe.transformer = torch.compile(self.eager, backend=toprovar, options=given)
        try:
            images, seconds, batches = self._generate()
        finally:
            self.pipe.transformer = self.eager
        return Waiting(
            options, seconds, self._similarity(images), batches, self._judge(images), self._frechet(images)
        )

    def finish(self, row: Waiting) -> dict[str, Any]:
        """Wait for the judges and summarise; "change" is the paired change of the score to dense."""
        verdicts = _told(row.verdicts)
        scores = [verdict.passed for verdict in verdicts]
        changes = np.array(scores, float) - np.array(self.dense_scores, float)
        flops = sum(batch.flops for batch in row.batches)
        first = row.batches[0]
        return self._summary(verdicts) | {
            "passed": scores,
            "change": float(changes.mean()),
            "change_se": float(changes.std() / math.sqrt(len(changes))),
            "psnr_db": row.similarity[0],
            "ssim": row.similarity[1],
            "frechet": row.frechet,
            "gflop_per_image": flops / len(scores) / 1e9,
            "flops_share": flops / sum(batch.flops_dense for batch in row.batches),
            "depths": [batch.depth for batch in row.batches],
            "roles": {str(layer): round(value, 3) for layer, value in first.roles.items()},
            "rho": {str(scale): round(value, 3) for scale, value in first.rho.items()},
            "fire_rates": dict(first.fire_rates),
            "seconds": row.seconds,
            "options": {name: str(value) for name, value in row.options.items()},
        }

    def _frechet(self, images: Images) -> float | None:
        if self.real is None:
            return None
        return frechet_distance(image_features(self.pipe.vae, images), self.real)

    def _generate(self) -> tuple[Images, float, list[BatchFacts]]:
        everyone = range(len(self.prompts))
        started = time.perf_counter()
        images, batches = self._draw([everyone[at : at + self.batch] for at in everyone[:: self.batch]])
        groups = _alike(batches)
        if groups:
            # Decisions of a batch are for its most careful image: images are drawn again among their like.
            started = time.perf_counter()
            parts = [
                group[at : at + self.batch] for group in groups for at in range(0, len(group), self.batch)
            ]
            images, batches = self._draw(parts)
        return images, time.perf_counter() - started, batches

    def _draw(self, parts: Sequence[Sequence[int]]) -> tuple[Images, list[BatchFacts]]:
        """Draw all prompts, in batches of the given numbers; the images are in the order of the prompts."""
        drawn, batches = [], []
        for part in parts:
            texts = [self.prompts[at].text for at in part]
            output = self.pipe(texts, seed=[self.first_seed + at for at in part])
            drawn.append(output.images)
            if output.report is not None:
                batches.append(BatchFacts.of(output.report))
        order = np.argsort([at for part in parts for at in part])
        return np.concatenate(drawn)[order], batches

    def _judge(self, images: Images) -> list[Future[list[Verdict]]]:
        return [
            self.pool.submit(judge_images, images[at : at + CHUNK], self.prompts[at : at + CHUNK])
            for at in range(0, len(images), CHUNK)
        ]

    def _summary(self, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        report = EvalReport.from_scores([verdict.passed for verdict in verdicts], self.prompts)
        match = float(np.mean([verdict.match for verdict in verdicts]))
        return {"overall": report.overall, "categories": report.categories, "match": match}

    def _similarity(self, images: Images) -> tuple[float | None, float]:
        """PSNR of the mean squared error, and mean SSIM, to the dense images."""
        squared, similar = 0.0, 0.0
        for at in range(0, len(images), CHUNK):
            pair = [
                torch.from_numpy(part[at : at + CHUNK]).to(self.pipe.device) for part in (self.dense, images)
            ]
            squared += float((255.0**2 / 10 ** (psnr(*pair) / 10)).sum())
            similar += float(ssim(*pair).sum())
        error = squared / len(images)
        return (10 * math.log10(255.0**2 / error) if error > 0 else None), similar / len(images)


def _told(futures: Sequence[Future[list[Verdict]]]) -> list[Verdict]:
    return [verdict for future in futures for verdict in future.result()]


def _alike(batches: Sequence[BatchFacts]) -> list[list[int]]:
    """Images by what the policy would decide about each alone; empty if batches changed no decision."""
    known = [batch.alone for batch in batches if batch.alone is not None]
    if len(known) < len(batches) or all(len(set(wish)) == 1 for wish in known):
        return []
    groups: dict[Hashable, list[int]] = {}
    for at, wish in enumerate(wish for batch in known for wish in batch):
        groups.setdefault(wish, []).append(at)
    return list(groups.values())
