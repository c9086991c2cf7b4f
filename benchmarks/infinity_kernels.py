"""Where a variant of `benchmarks.infinity` spends its time: kernels by name, for a range of scales.

    python -m benchmarks.infinity_kernels --model 2b --variant 25-5 --scales 4,5 --scales 0,8 --scales 0,13
    python -m benchmarks.infinity_kernels --tiny --lowering eager      # operators instead, on any machine

Times are sums over the kernels of the profiled scales, `--scales FIRST,END`; gaps between kernels are not in
them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.infinity_variants import MODELS, Problem, transformers
from toprovar_fx import generation
from toprovar_fx.evaluation.timing import synchronize


@dataclass
class Kernels:
    """Time in us and number of calls by kernel name."""

    us: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def __sub__(self, other: Kernels) -> Kernels:
        us = {name: time - other.us[name] for name, time in self.us.items()}
        calls = {name: count - other.calls[name] for name, count in self.calls.items()}
        return Kernels(Counter(us), Counter(calls))

    def table(self, most: int) -> str:
        """The total, and the `most` names that take longest."""
        lines = [f"{sum(self.us.values()) / 1e3:.2f} ms in {sum(self.calls.values())} calls"]
        for name, us in self.us.most_common(most):
            count = self.calls[name]
            if count > 0:
                lines.append(f"{us / 1e3:9.3f} ms {count:6d} x {us / count:8.1f} us  {name[:110]}")
        return "\n".join(lines)


def generate(problem: Problem, transformer: Any, scales: int) -> None:
    """The first `scales` scales of a generation."""
    with torch.no_grad():
        loop = problem.begin(transformer, images=1, seed=0)
        with generation(problem.schedule) as run:
            for scale in range(scales):
                if run.begin_scale(scale):
                    loop.run_scale(scale)
        synchronize(problem.device)


def profiled(problem: Problem, transformer: Any, scales: int) -> Kernels:
    """What the first `scales` scales run: kernels on CUDA, operators elsewhere."""
    found = Kernels()
    if scales == 0:
        return found
    on_cuda = problem.device == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if on_cuda else []
    with torch.profiler.profile(activities=kinds) as profile:
        generate(problem, transformer, scales)
    wanted = "CUDA" if on_cuda else "CPU"
    for event in profile.events():
        if event.device_type.name == wanted:
            found.us[event.name] += event.time_range.elapsed_us() if on_cuda else event.self_cpu_time_total
            found.calls[event.name] += 1
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Profile and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=[*MODELS], default="2b")
    parser.add_argument("--tiny", action="store_true", help="the model 'tiny' on a CPU")
    parser.add_argument("--variant", default="25-5", help="as for benchmarks.infinity")
    parser.add_argument(
        "--scales", action="append", type=lambda text: tuple(map(int, text.split(","))), help="FIRST,END"
    )
    parser.add_argument("--most", type=int, default=28, help="rows per table")
    parser.add_argument("--lowering", choices=["inductor", "eager"], default="inductor")
    arguments = parser.parse_args(argv)
    on_cpu = arguments.tiny or not torch.cuda.is_available()
    problem = Problem(
        "tiny" if arguments.tiny else arguments.model,
        "cpu" if on_cpu else "cuda",
        torch.float32 if on_cpu else torch.bfloat16,
    )
    every = len(problem.schedule)
    torch._dynamo.config.recompile_limit = 64
    transformer = transformers(problem, arguments.lowering)[arguments.variant]()
    for _ in range(2):
        generate(problem, transformer, every)
    for first, end in arguments.scales or [(0, every)]:
        if not 0 <= first < end <= every:
            raise SystemExit(f"--scales {first},{end}: expected 0 <= FIRST < END <= {every}")
        kernels = profiled(problem, transformer, end) - profiled(problem, transformer, first)
        print(f"{problem.name} {arguments.variant}, scales {first} to {end - 1}:")
        print(kernels.table(arguments.most))


if __name__ == "__main__":
    main()
