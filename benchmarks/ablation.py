"""Quality tables on the demo model: SceneEval, PSNR and SSIM to the dense images, FLOPs, per option set.

    python -m benchmarks.ablation --n 1200 --device cuda --out ablation.json [--groups ranking,restoration]

Settings are chosen on `--split tune` and reported on the default, `test`: other prompts, other image seeds.

All rows share prompts and seeds, so differences are paired. Scores come with the standard error of the
paired difference to dense. Results are written after every row and kept in `OUT.rows.jsonl`: the same command
goes on after an interruption, and other groups may be added. The eager lowering is used: it computes what
the compiled graphs compute, without compiling each row.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation_variants import GROUPS, Row, rows
from toprovar_fx import InfinityPipeline, __version__
from toprovar_fx.evaluation.frontier_store import DENSE, RowStore, fingerprint
from toprovar_fx.evaluation.study import SPLITS, PairedStudy, Waiting, judges


def record(store: RowStore, name: str, row: Mapping[str, Any], options: Mapping[str, object]) -> None:
    """Keep a row, and add it to the table on standard output."""
    figures = {key: value for key, value in row.items() if key != "passed"}
    store.add(0, name, {"fingerprint": fingerprint(options), **figures})
    print(
        f"{name:55s} {row['overall']:.3f} ({row['change']:+.3f} +- {row['change_se']:.3f})  "
        f"{row['psnr_db'] or math.inf:5.1f} dB  {row['flops_share']:.0%} of FLOPs  {row['seconds']:.1f} s",
        flush=True,
    )


def write(store: RowStore, settings: Mapping[str, Any], out: Path) -> int:
    """Write all rows that were measured so far; returns their number."""
    lines = {name: store.rows(name)[0] for name in store.names()}
    dense = lines.pop(DENSE)
    out.write_text(json.dumps({**settings, "dense": dense, "rows": lines}, indent=1) + "\n")
    return len(lines)


def measure(
    study: PairedStudy, pending: Mapping[str, Row], store: RowStore, until: float, told: Callable[[], object]
) -> None:
    """Draw and judge rows until time is up; `told` is called after every row."""
    waiting: tuple[str, Waiting] | None = None
    for name, options in pending.items():
        if time.monotonic() > until:
            print("time is up", file=sys.stderr)
            break
        drawn = study.start(options)
        # The judges work on one row while the next is drawn.
        if waiting:
            record(store, waiting[0], study.finish(waiting[1]), pending[waiting[0]])
            told()
        waiting = name, drawn
    if waiting:
        record(store, waiting[0], study.finish(waiting[1]), pending[waiting[0]])
        told()


def main(given: Sequence[str] | None = None) -> None:
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
    chosen = parser.parse_args(given)
    until = time.monotonic() + chosen.seconds
    groups = [group for group in chosen.groups.split(",") if group]
    if unknown := [group for group in groups if group not in GROUPS]:
        parser.error(f"unknown group '{unknown[0]}', expected some of {', '.join(GROUPS)}")
    wanted = {name: options for name, options in rows(groups).items() if re.search(chosen.match, name)}
    dtype = getattr(torch, chosen.dtype) if chosen.dtype else None
    pipe = InfinityPipeline.from_pretrained(chosen.model, chosen.device, dtype)
    settings = {
        "model": chosen.model,
        "n": chosen.n,
        "split": chosen.split,
        "batch": min(chosen.batch, chosen.n),
        "device": torch.cuda.get_device_name() if chosen.device.startswith("cuda") else "cpu",
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "toprovar_fx": __version__,
    }
    store = RowStore(chosen.out.with_name(f"{chosen.out.name}.rows.jsonl"), settings)
    pending = {name: options for name, options in wanted.items() if store.get(0, name) is None}
    for name in wanted.keys() - pending.keys():
        if store.rows(name)[0]["fingerprint"] != fingerprint(wanted[name]):
            parser.error(f"'{name}' was measured with other options before, expected another --out")
    if pending:
        with judges(chosen.workers) as pool, torch.inference_mode():
            study = PairedStudy(pipe, chosen.n, chosen.split, chosen.batch, pool)
            store.add(0, DENSE, study.baseline | {"first_image_seed": study.first_seed})
            measure(study, pending, store, until, lambda: write(store, settings, chosen.out))
    count = write(store, settings, chosen.out)
    print(json.dumps({"dense": store.rows(DENSE)[0]["overall"], "rows": count}))


if __name__ == "__main__":
    main()
