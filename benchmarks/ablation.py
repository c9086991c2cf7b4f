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
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation_variants import GROUPS, rows
from toprovar_fx import InfinityPipeline
from toprovar_fx.evaluation.study import SPLITS, PairedStudy, Waiting, judges


def record(result: dict[str, Any], name: str, row: dict[str, Any], out: Path) -> None:
    """Add a row to the result, its file and the table on standard output."""
    result["rows"][name] = {name: value for name, value in row.items() if name != "passed"}
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
    with judges(chosen.workers) as pool, torch.inference_mode():
        study = PairedStudy(pipe, chosen.n, chosen.split, chosen.batch, pool)
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
