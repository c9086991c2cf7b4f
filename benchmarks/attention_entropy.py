"""Attention with entropy against stock attention: time, TFLOP/s, and what the entropy costs.

    python -m benchmarks.attention_entropy --out entropy.json            # the table
    python -m benchmarks.attention_entropy --tune --out tune.json        # every configuration of the kernel

Every candidate is captured in a CUDA graph that walks over several sets of inputs (together larger than the
L2 cache); replays of all candidates are interleaved in random order, and medians are reported. Ratios are to
the fastest stock SDPA backend of that shape. The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attention_entropy_variants import entropy_variants, tuning_variants
from benchmarks.attention_timing import STOCK, Call, Problem, medians, stock, timed
from toprovar_fx.ops import attention_entropy

SHAPES = ((576, 1497), (1024, 2521), (1600, 4121), (2304, 6425), (4096, 10521))


def naive(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The baseline of the paper: attention, and the entropy from the whole matrix."""
    out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    p = torch.softmax(q @ k.transpose(-1, -2), dim=-1, dtype=torch.float32)
    return out, -(p * torch.log(p + 1e-12)).sum(-1).mean(1)


def two_kernels(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Stock attention, then the entropy tile by tile from stock kernels."""
    return F.scaled_dot_product_attention(q, k, v, scale=1.0), attention_entropy(q, k, 1.0)


def slow_medians(calls: dict[str, Call], problem: Problem, rounds: int = 3) -> dict[str, float]:
    """The same for candidates too large to be captured several times over."""
    inputs = problem.sets()[0]
    found = {}
    for name, call in calls.items():
        call(*inputs)
        found[name] = statistics.median(timed(partial(call, *inputs)) * 1e3 for _ in range(rounds))
    return found


def deviations(calls: dict[str, Call], problem: Problem, rows: int = 48) -> dict[str, list[float]]:
    """Largest absolute error of output and entropy (nats) on some rows, against float64."""
    q, k, v = problem.sets()[0]
    chosen = torch.linspace(0, problem.queries - 1, rows, device="cuda").long()
    s = q[:, :, chosen].double() @ k.double().mT
    found = {}
    for name, call in calls.items():
        if name.endswith(("-H", "without entropy")):
            continue
        try:
            out, entropy = call(q, k, v)
        except Exception:
            continue  # `medians` has its message
        first = problem.keys - problem.queries if "own scale" in name else 0
        logp = torch.log_softmax(s[..., first:], -1)
        expected = -(logp.exp() * logp).sum(-1)
        expected, got = (
            (expected, entropy[:, :, chosen])
            if entropy.dim() == 3
            else (expected.mean(1), entropy[:, chosen])
        )
        error = (out[:, :, chosen].double() - s.softmax(-1) @ v.double()).abs().max()
        found[name] = [float(error), float((got.double() - expected).abs().max())]
    return found


def gemm_tflops(size: int = 8192) -> float:
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / statistics.median(timed(lambda: a @ b) for _ in range(10)) / 1e9


def measure(
    problem: Problem, own: dict[str, Call], rounds: int, peak: float, slow: dict[str, Call]
) -> dict[str, Any]:
    times, errors = medians({name: stock(backend) for name, backend in STOCK.items()} | own, problem, rounds)
    times |= slow_medians(slow, problem)
    best = min(times[name] for name in STOCK if name in times)
    wrong = deviations(own, problem)
    print(f"\n{problem}  fastest stock {best:.1f} us")
    for name, taken in sorted(times.items(), key=lambda item: item[1]):
        rate = problem.flops / taken / 1e6
        note = "  error out {:.1e}, H {:.1e}".format(*wrong[name]) if name in wrong else ""
        print(
            f"  {name:34}{taken:10.1f} us {taken / best:7.3f} x {rate:6.0f} TFLOP/s {rate / peak:5.0%}{note}"
        )
    for name, error in errors.items():
        print(f"  {name:34} {error}")
    return {**asdict(problem), "fastest_us": best, "us": times, "errors": errors, "deviation": wrong}


def summary(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Geometric mean over the shapes of time over the fastest stock backend, best first."""
    names = set.intersection(*(set(result["us"]) for result in results))
    means = {
        name: statistics.geometric_mean([result["us"][name] / result["fastest_us"] for result in results])
        for name in names
    }
    return dict(sorted(means.items(), key=lambda item: item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="time every configuration of the kernel")
    parser.add_argument("--heads", default="16,28", help="numbers of heads (default: %(default)s)")
    parser.add_argument("--shapes", help="Lq,Lk pairs such as 576,1497:1024,2521 (default: all of the issue)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--width", type=int, default=128, help="channels per head")
    parser.add_argument("--rounds", type=int, default=25, help="interleaved replays per candidate")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    shapes = (
        [tuple(map(int, pair.split(","))) for pair in arguments.shapes.split(":")]
        if arguments.shapes
        else SHAPES
    )
    started = time.perf_counter()
    tuned, excluded = tuning_variants(arguments.width) if arguments.tune else ({}, {})
    for name, reason in excluded.items():
        print(f"left out: {name}: {reason}")
    slow: dict[str, Call] = (
        {} if arguments.tune else {"naive matrix": naive, "stock + entropy tiles": two_kernels}
    )
    peak = gemm_tflops()
    print(
        f"prepared in {time.perf_counter() - started:.0f} s; {peak:.0f} TFLOP/s in a matrix product of 8192"
    )
    results = []
    for heads in map(int, arguments.heads.split(",")):
        for queries, keys in shapes:
            problem = Problem(arguments.batch, heads, queries, keys, arguments.width)
            own = tuned or entropy_variants(keys - queries)
            results.append(measure(problem, own, arguments.rounds, peak, slow))
    means = summary(results)
    print("\ngeometric mean over shapes, time over the fastest stock backend")
    for name, value in means.items():
        print(f"  {name:34}{value:7.3f}")
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "left_out": excluded,
        "gemm_tflops": [peak, gemm_tflops()],
        "seconds": time.perf_counter() - started,
        "means": means,
        "results": results,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1))
    print(json.dumps({**record, "results": len(results)}))


if __name__ == "__main__":
    main()
