"""Plain attention: stock backends against the Hopper kernel, its last tiles in one range of keys or several.

    python -m benchmarks.attention --out attention.json
    python -m benchmarks.attention --heads 16 --shapes 205,10521 --ranges 2,3,4,6,8
    python -m benchmarks.attention --few                        # the first scales, and all over a padded text

Candidates are CUDA graphs, replayed in random order, as in `benchmarks.attention_entropy`. "ours" is the
operator with what it chooses, which is printed at the end of the line: stock attention, the kernel for few
keys, or how many ranges. With several ranges all tiles are in them that do not make a full turn of the
multiprocessors. The last line is the record as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention_timing import STOCK, Problem, medians, padding, stock
from toprovar_fx.ops import attention, triton_few_keys
from toprovar_fx.ops.attention_launch import deal_for, launch
from toprovar_fx.ops.attention_plan import Deal, tiles_of

# Whole scales of a generation at 1024x1024, the first ones apart; then scales of which few tokens are kept.
FIRST = ((1, 1), (4, 5), (16, 21), (36, 57), (64, 121), (144, 265))
DENSE = ((256, 521), (400, 921), (576, 1497), (1024, 2521), (1600, 4121), (2304, 6425), (4096, 10521))
PRUNED = (
    (51, 1700),
    (64, 1753),
    (80, 2600),
    (115, 4236),
    (205, 6630),
    (256, 1753),
    (512, 3000),
    (205, 10521),
)
# Queries of scales, whole and pruned, over a text of 64 tokens, and of few over a long one.
TEXT = (*((queries, 64) for queries in (1, 4, 16, 36, 64, 144, 256, 400, 576, 1024, 51, 205)), (51, 512))
Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def dealt(q: Tensor, k: Tensor, v: Tensor, ranges: int) -> Tensor:
    """The kernel with the keys of its last tiles in so many ranges."""
    programs = torch.cuda.get_device_properties(q.device).multi_processor_count
    tiles = tiles_of(q.shape[2], q.shape[0] * q.shape[1])
    whole = tiles if ranges == 1 else tiles - tiles % programs
    return launch(q, k, v, 1.0, Deal(whole, ranges, programs))


def own_calls(ranges: Sequence[int]) -> dict[str, Call]:
    """The operator, and the kernel with each number of key ranges."""
    named = {f"{count} range{'s' * (count > 1)}": partial(dealt, ranges=count) for count in ranges}
    return {"ours": lambda q, k, v: attention(q, k, v, 1.0), **named}


def error_of(call: Call, problem: Problem, rows: int = 16) -> float:
    """Largest absolute error on some rows, against float64."""
    q, k, v = problem.sets()[0]
    chosen = torch.linspace(0, problem.queries - 1, rows, device="cuda").long()
    expected = (q[:, :, chosen].double() @ k.double().mT).softmax(-1) @ v.double()
    return float((call(q, k, v)[:, :, chosen].double() - expected).abs().max())


def check(ranges: Sequence[int]) -> None:
    """Compare the kernel with float64 at ragged lengths; compiles all that is measured."""
    for queries, keys in ((1, 129), (70, 131), (205, 1001), (300, 5000)):
        for name, call in own_calls(ranges).items():
            error = error_of(call, Problem(2, 4, queries, keys, 128))
            assert error < 2e-2, f"{name}: off by {error:.1e} at {queries}x{keys}"


def checked(ranges: Sequence[int]) -> list[int]:
    """Those numbers of ranges that pass in a process of its own: a fault or a hang costs no other."""
    command = [sys.executable, "-m", "benchmarks.attention", "--check", "--ranges"]
    try:
        given = [*command, ",".join(map(str, ranges))]
        done = subprocess.run(given, capture_output=True, text=True, timeout=60)
        message = (done.stdout + done.stderr).strip()[-600:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        message = "hangs, or takes over 60 s to compile"
    print(f"check of {', '.join(map(str, ranges))} ranges: {message or 'passed'}", flush=True)
    if message and len(ranges) > 1:
        return [count for each in ranges for count in checked([each])]
    return [] if message else list(ranges)


def choice(problem: Problem, mask: Tensor | None) -> str:
    """What the operator takes at these sizes."""
    inputs = problem.sets()[0]
    deal = deal_for(*inputs, 1.0) if mask is None else None
    if deal is not None:
        return str(deal.ranges)
    return "few" if triton_few_keys.takes(*inputs, mask) else "stock"


def measure(
    problem: Problem, own: dict[str, Call], rounds: int, mask: Tensor | None = None
) -> dict[str, Any]:
    """Time every candidate at one shape, and print a line of the table."""
    library = {name: stock(backend, mask) for name, backend in STOCK.items()}
    times, errors = medians(library | own, problem, rounds)
    best = min((times[name] for name in STOCK if name in times), default=float("nan"))
    chosen = choice(problem, mask)
    cells = " ".join(f"{times.get(name, float('nan')):9.1f}" for name in (*STOCK, *own))
    ratio = times.get("ours", float("nan")) / best
    sizes = f"{problem.heads:5} {problem.queries:5},{problem.keys:6}"
    print(f"{sizes} {cells}  {ratio:6.3f} {chosen:>6}", flush=True)
    for name, message in errors.items():
        print(f"      {name}: {message}", flush=True)
    found = {"heads": problem.heads, "queries": problem.queries, "keys": problem.keys}
    what = {"masked": mask is not None, "chosen": chosen, "ratio": ratio}
    return {**found, **what, "us": times, "errors": errors}


def measure_few(batch: int, heads: int, rounds: int) -> list[dict[str, Any]]:
    """The sizes of few keys: of a cache, and of a text of which two fifths count."""
    results = []
    for queries, keys in FIRST:
        problem = Problem(batch, heads, queries, keys, 128)
        results.append(measure(problem, own_calls([]), rounds))
    for queries, keys in TEXT:
        problem = Problem(batch, heads, queries, keys, 128)
        mask = padding(problem, keys * 2 // 5)
        masked: dict[str, Call] = {"ours": partial(attention, scale=1.0, mask=mask)}
        results.append(measure(problem, masked, rounds, mask))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--heads", default="16,28", help="numbers of heads (default: %(default)s)")
    parser.add_argument("--shapes", help="Lq,Lk pairs such as 576,1497:205,6630 (default: a model's)")
    parser.add_argument("--ranges", default="1,2,4,8", help="numbers of key ranges (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=13, help="interleaved replays per candidate")
    parser.add_argument("--few", action="store_true", help="few keys alone, those of a text with a mask")
    parser.add_argument("--check", action="store_true", help="compare with float64 and measure nothing")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    random.seed(0)
    ranges = [int(count) for count in arguments.ranges.split(",")]
    if arguments.check:
        check(ranges)
        return
    pairs = arguments.shapes.split(":") if arguments.shapes else ()
    shapes = [tuple(map(int, pair.split(","))) for pair in pairs] or [*PRUNED, *FIRST, *DENSE]
    started = time.perf_counter()
    own = own_calls([] if arguments.few else checked(ranges))
    names = " ".join(f"{name:>9}" for name in (*STOCK, *own))
    print(f"us of a call\nheads    Lq,    Lk {names}  ours/best stock, chosen", flush=True)
    results = []
    for heads in map(int, arguments.heads.split(",")):
        if arguments.few:
            results += measure_few(arguments.batch, heads, arguments.rounds)
            continue
        for queries, keys in shapes:
            problem = Problem(arguments.batch, heads, queries, keys, 128)
            results.append(measure(problem, own, arguments.rounds))
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - started,
        "results": results,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
