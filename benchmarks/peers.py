"""Policies of this backend against the published code of the methods, run from clones with random weights.

    python -m benchmarks.peers --fastvar PATH --skipvar PATH

PATH is a clone of csguoh/FastVAR, or of fakerone-li/SkipVAR; either may be left out. The clones' code runs as
it is, on a CPU in float32, with stand-ins for packages that are not installed (`upstream_shims.py`,
`peers_pickles.py`), at their own thirteen scales, with narrow layers: a minute or two on one core each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass
class Row:
    """One line of the table; `passed` is None for what is only reported."""

    method: str
    check: str
    found: str
    wanted: str
    passed: bool | None


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Every check of the clones that were given."""
    if arguments.fastvar is not None:
        from benchmarks.peers_fastvar import compare

        for check, found, wanted, passed in compare(arguments.fastvar, arguments.seed, arguments.lowering):
            yield Row("fastvar", check, found, wanted, passed)
    if arguments.skipvar is not None:
        from benchmarks.peers_skipvar import compare as compare_skipvar

        for check, found, wanted, passed in compare_skipvar(arguments.skipvar, arguments.seed):
            yield Row("skipvar", check, found, wanted, passed)


def main() -> int:
    """Run the checks; 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fastvar", type=Path, help="clone of csguoh/FastVAR")
    parser.add_argument("--skipvar", type=Path, help="clone of fakerone-li/SkipVAR")
    parser.add_argument("--seed", type=int, default=0, help="of weights, text and sampling")
    parser.add_argument("--lowering", default="eager", choices=["eager", "inductor"], help="of this backend")
    arguments = parser.parse_args()
    if arguments.fastvar is None and arguments.skipvar is None:
        parser.error("expected --fastvar PATH or --skipvar PATH")
    done = []
    print(f"| {'method':8} | {'check':46} | {'found':44} | {'wanted':16} | passed |")
    print(f"|{'-' * 10}|{'-' * 48}|{'-' * 46}|{'-' * 18}|{'-' * 8}|")
    for row in rows(arguments):
        done.append(row)
        verdict = {True: "yes", False: "NO", None: "-"}[row.passed]
        cells = f"{row.method:8} | {row.check:46} | {row.found:44} | {row.wanted:16} | {verdict:6}"
        print(f"| {cells} |", flush=True)
    settings = {"torch": torch.__version__, "seed": arguments.seed, "lowering": arguments.lowering}
    print(json.dumps({**settings, "rows": [asdict(row) for row in done]}))
    return int(any(row.passed is False for row in done))


if __name__ == "__main__":
    raise SystemExit(main())
