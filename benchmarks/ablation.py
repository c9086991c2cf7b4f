"""Quality tables on the demo model: SceneEval, PSNR and SSIM to the dense images, FLOPs, per option set.

    python -m benchmarks.ablation --n 1200 --device cuda --out ablation.json [--groups ranking,restoration]

All rows share prompts and seeds, so differences are paired. Scores come with the standard error of the
paired difference to dense. Results are written after every row. The eager lowering is used: it computes what
the compiled graphs compute, without compiling each row.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
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


class Study:
    """Prompts, seeds and the dense images that every row is compared with."""

    def __init__(
        self, pipe: InfinityPipeline, prompts: list[EvalPrompt], batch: int, pool: ProcessPoolExecutor
    ) -> None:
        self.pipe, self.prompts, self.batch, self.pool = pipe, prompts, batch, pool
        self.eager = pipe.transformer
        self.dense, seconds, _ = self._generate()
        self.dense_scores = self._score(self.dense)
        self.baseline = self._summary(self.dense_scores) | {"seconds": seconds}

    def _generate(self) -> tuple[Images, float, list[GenerationReport]]:
        parts, reports = [], []
        started = time.perf_counter()
        for start in range(0, len(self.prompts), self.batch):
            part = self.prompts[start : start + self.batch]
            output = self.pipe([prompt.text for prompt in part], seed=start)
            parts.append(output.images)
            reports.append(output.report)
        return np.concatenate(parts), time.perf_counter() - started, reports

    def _score(self, images: Images) -> list[bool]:
        waiting: list[Future[list[bool]]] = [
            self.pool.submit(score_images, images[at : at + CHUNK], self.prompts[at : at + CHUNK])
            for at in range(0, len(images), CHUNK)
        ]
        return [score for future in waiting for score in future.result()]

    def _summary(self, scores: list[bool]) -> dict[str, Any]:
        report = EvalReport.from_scores(scores, self.prompts)
        return {"overall": report.overall, "categories": report.categories}

    def row(self, options: Row) -> dict[str, Any]:
        """Measure one option set."""
        torch.compiler.reset()
        self.pipe.transformer = torch.compile(
            self.eager, backend=toprovar, options={"lowering": "eager", **options}
        )
        try:
            images, seconds, reports = self._generate()
        finally:
            self.pipe.transformer = self.eager
        scores = self._score(images)
        changes = np.array(scores, float) - np.array(self.dense_scores, float)
        pair = torch.from_numpy(self.dense), torch.from_numpy(images)
        noise = 255.0**2 / 10 ** (psnr(*pair) / 10)
        dense = sum(report.flops_dense for report in reports)
        return self._summary(scores) | {
            "change": float(changes.mean()),
            "change_se": float(changes.std() / math.sqrt(len(changes))),
            "psnr_db": float(10 * torch.log10(255.0**2 / noise.mean())) if float(noise.mean()) > 0 else None,
            "ssim": float(ssim(*pair).mean()),
            "gflop_per_image": sum(report.flops for report in reports) / len(images) / 1e9,
            "flops_share": sum(report.flops for report in reports) / dense,
            "depths": [report.depth for report in reports],
            "roles": {str(layer): round(value, 3) for layer, value in reports[0].roles.items()},
            "rho": {str(scale): round(value, 3) for scale, value in reports[0].controller.ledger.rho.items()},
            "fire_rates": reports[0].fire_rates,
            "seconds": seconds,
            "options": {name: str(value) for name, value in options.items()},
        }


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=1200, help="prompts")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16; the device's default otherwise")
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--groups", default="", help=f"comma-separated, of {', '.join(GROUPS)}")
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
        study = Study(pipe, list(eval_prompts(chosen.n)), chosen.batch, pool)
        result: dict[str, Any] = {
            "n": chosen.n,
            "device": torch.cuda.get_device_name() if chosen.device.startswith("cuda") else "cpu",
            "torch": torch.__version__,
            "dense": study.baseline,
            "rows": {},
        }
        for name, options in rows([group for group in chosen.groups.split(",") if group]).items():
            if time.monotonic() - started > chosen.seconds:
                print("time is up", file=sys.stderr)
                break
            row = result["rows"][name] = study.row(options)
            chosen.out.write_text(json.dumps(result, indent=1))
            print(
                f"{name:55s} {row['overall']:.3f} ({row['change']:+.3f} +- {row['change_se']:.3f})  "
                f"{row['psnr_db'] or math.inf:5.1f} dB  {row['flops_share']:.0%} of FLOPs  "
                f"{row['seconds']:.1f} s",
                flush=True,
            )
    print(json.dumps({"dense": study.baseline["overall"], "rows": len(result["rows"])}))


if __name__ == "__main__":
    main()
