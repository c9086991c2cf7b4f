"""The JSON of `benchmarks.ablation` as Markdown tables, one per group.

python -m benchmarks.ablation_table ablation.json [more.json ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = "| {} | score | change | PSNR dB | SSIM | FLOPs |\n|---|---|---|---|---|---|"


def line(name: str, row: dict[str, Any]) -> str:
    """One row: score, paired change to dense with its standard error, similarity to dense, share of FLOPs."""
    change = f"{row['change']:+.3f} ± {row['change_se']:.3f}"
    psnr = "equal" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
    cells = [name, f"{row['overall']:.3f}", change, psnr, f"{row['ssim']:.3f}", f"{row['flops_share']:.0%}"]
    return f"| {' | '.join(cells)} |"


def tables(results: list[dict[str, Any]]) -> str:
    """All groups of all results that share split, number of prompts and device."""
    groups: dict[str, list[str]] = {}
    for result in results:
        for key, row in result["rows"].items():
            group, name = key.split(": ", 1)
            groups.setdefault(group, []).append(line(name, row))
    first = results[0]
    parts = [f"Dense: {first['dense']['overall']:.3f} ({first['n']} prompts, split {first['split']})."]
    parts += ["\n".join([HEAD.format(group), *rows]) for group, rows in groups.items()]
    return "\n\n".join(parts)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(tables([json.loads(Path(path).read_text()) for path in sys.argv[1:]]))
