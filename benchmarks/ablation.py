"""Quality tables on the demo model: SceneEval, PSNR and SSIM to the dense images, FLOPs, per option set.

    python -m benchmarks.ablation --n 1200 --device cuda --out ablation.json [--groups ranking,restoration]

Settings are chosen on `--split tune` and reported on the default, `test`: other prompts, other image seeds.

All rows share prompts and seeds, so differences are paired. Scores come with the standard error of the
paired difference to dense. Results are written after every row. The eager lowering is used: it computes what
the compiled graphs compute, without compiling each row.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.ablation_variants import GROUPS, Row, rows
from toprovar_fx import InfinityPipeline
from toprovar_fx.backend import toprovar
from toprovar_fx.evaluation import EvalReport, psnr, score_images, ssim
from toprovar_fx.runtime.report import GenerationReport
from toprovar_fx.scenes.prompts import EvalPrompt, eval_prompts

Images = NDArray[np.uint8]
CHUNK = 25
# Seeds of the prompts; images of different splits have different seeds too.
SPLITS = {"test": 0, "tune": 1}
SEEDS_APART = 1_000_000


@dataclass(frozen=True)
class Waiting:
    """A row whose images are drawn and being judged."""

    options: Row
    seconds: float
    similarity: tuple[float | None, float]
    reports: list[GenerationReport]
    scores: list[Future[list[bool]]]


class Study:
    """Prompts, seeds and the dense images that every row is compared with."""

    def __init__(
        self,
        pipe: InfinityPipeline,
        prompts: list[EvalPrompt],
        first_seed: int,
        batch: int,
        pool: ProcessPoolExecutor,
    ) -> None:
        self.pipe, self.prompts, self.first_seed = pipe, prompts, first_seed
        self.batch, self.pool = batch, pool
        self.eager = pipe.transformer
        self.dense, seconds, _ = self._generate()
        self.dense_scores = [score for future in self._judge(self.dense) for score in future.result()]
        self.baseline = self._summary(self.dense_scores) | {"seconds": seconds}

    def _generate(self) -> tuple[Images, float, list[GenerationReport]]:
        parts, reports = [], []
        started = time.perf_counter()
        for start in range(0, len(self.prompts), self.batch):
            part = self.prompts[start : start + self.batch]
            output = self.pipe([prompt.text for prompt in part], seed=self.first_seed + start)
            parts.append(output.images)
            reports.append(output.report)
        return np.concatenate(parts), time.perf_counter() - started, reports

    def _judge(self, images: Images) -> list[Future[list[bool]]]:
        return [
            self.pool.submit(score_images, images[at : at + CHUNK], self.prompts[at : at + CHUNK])
            for at in range(0, len(images), CHUNK)
        ]

    def _summary(self, scores: list[bool]) -> dict[str, Any]:
        report = EvalReport.from_scores(scores, self.prompts)
        return {"overall": report.overall, "categories": report.categories}

    def start(self, options: Row) -> Waiting:
        """Draw the images of one option set and leave them with the judges."""
        torch.compiler.reset()
        self.pipe.transformer = torch.compile(
            self.eager, backend=toprovar, options={"lowering": "eager", **options}
        )
        try:
            images, seconds, reports = self._generate()
        finally:
            self.pipe.transformer = self.eager
        return Waiting(options, seconds, self._similarity(images), reports, self._judge(images))

    def finish(self, row: Waiting) -> dict[str, Any]:
        """Wait for the judges and summarise."""
        scores = [score for future in row.scores for score in future.result()]
        changes = np.array(scores, float) - np.array(self.dense_scores, float)
        flops = sum(report.flops for report in row.reports)
        first = row.reports[0]
        return self._summary(scores) | {
            "change": float(changes.mean()),
            "change_se": float(changes.std() / math.sqrt(len(changes))),
            "psnr_db": row.similarity[0],
            "ssim": row.similarity[1],
            "gflop_per_image": flops / len(scores) / 1e9,
            "flops_share": flops / sum(report.flops_dense for report in row.reports),
            "depths": [report.depth for report in row.reports],
            "roles": {str(layer): round(value, 3) for layer, value in first.roles.items()},
            "rho": {str(scale): round(value, 3) for scale, value in first.controller.ledger.rho.items()},
            "fire_rates": first.fire_rates,
            "seconds": row.seconds,
            "options": {name: str(value) for name, value in row.options.items()},
        }

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


def record(result: dict[str, Any], name: str, row: dict[str, Any], out: Path) -> None:
    """Add a row to the result, its file and the table on standard output."""
    result["rows"][name] = row
    out.write_text(json.dumps(result, indent=1))
    print(
        f"{name:55s} {row['overall']:.3f} ({row['change']:+.3f} +- {row['change_se']:.3f})  "
        f"{row['psnr_db'] or math.inf:5.1f} dB  {row['flops_share']:.0%} of FLOPs  {row['seconds']:.1f} s",
        flush=True,
    )


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=1200, help="prompts")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help="prompts and image seeds: 'tune' to choose settings by, 'test' to report",
    )
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16; the device's default otherwise")
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--groups", default="", help=f"comma-separated, of {', '.join(GROUPS)}")
    parser.add_argument("--match", default="", help="only rows whose name matches this regular expression")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="start no further row after this time"
    )
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    started = time.monotonic()
    dtype = getattr(torch, chosen.dtype) if chosen.dtype else None
    pipe = InfinityPipeline.from_pretrained(chosen.model, chosen.device, dtype)
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool, torch.inference_mode():
        split = SPLITS[chosen.split]
        prompts = list(eval_prompts(chosen.n, seed=split))
        study = Study(pipe, prompts, split * SEEDS_APART, chosen.batch, pool)
        result: dict[str, Any] = {
            "n": chosen.n,
            "split": chosen.split,
            "device": torch.cuda.get_device_name() if chosen.device.startswith("cuda") else "cpu",
            "torch": torch.__version__,
            "dense": study.baseline,
            "rows": {},
        }
        waiting: dict[str, Waiting] = {}
        for name, options in rows([group for group in chosen.groups.split(",") if group]).items():
            if not re.search(chosen.match, name):
                continue
            if time.monotonic() - started > chosen.seconds:
                print("time is up", file=sys.stderr)
                break
            # The judges work on one row while the next is drawn.
            waiting[name] = study.start(options)
            for drawn in [other for other in waiting if other != name]:
                record(result, drawn, study.finish(waiting.pop(drawn)), chosen.out)
        for drawn, row in waiting.items():
            record(result, drawn, study.finish(row), chosen.out)
    print(json.dumps({"dense": study.baseline["overall"], "rows": len(result["rows"])}))


if __name__ == "__main__":
    main()
