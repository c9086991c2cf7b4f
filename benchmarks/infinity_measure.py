"""Measures one variant of `benchmarks.infinity`: time by scale, host time, launches, memory, compilation."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from toprovar_fx import dense, generation
from toprovar_fx.evaluation.timing import settled_heap, synchronize
from toprovar_fx.models.shared_tail import mapped_bytes
from toprovar_fx.runtime.report import GenerationReport, report_of

from .clocks import Clock, DeviceClock, HostClock
from .infinity_roof import Roof
from .infinity_upstream import UpstreamTransformer
from .infinity_variants import Problem


class Marked:
    """A transformer that marks the clock before and after every scale step."""

    def __init__(self, transformer: Any, clock: Clock) -> None:
        self._transformer, self._clock = transformer, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def __call__(self, *args: Any) -> Any:
        self._clock.mark()
        result = self._transformer(*args)
        self._clock.mark()
        return result


@dataclass
class Run:
    """One generation.

    Attributes:
        step_ms: of the transformer, by scale; total_ms: of everything from the first scale to the last.
        host_ms: until the last scale was enqueued.
    """

    step_ms: list[float]
    total_ms: float
    host_ms: float
    report: GenerationReport | None


def generate(problem: Problem, transformer: Any, images: int, seed: int = 0) -> Run:
    """All scales, without text encoder and image decoder."""
    clock: Clock = DeviceClock() if problem.device == "cuda" else HostClock()
    if isinstance(transformer, UpstreamTransformer):
        total, host = transformer.run(clock, images, seed)
        return Run(clock.milliseconds(), total, host, None)
    with torch.no_grad():
        loop = problem.begin(Marked(transformer, clock), images, seed)
        synchronize(problem.device)
        started = time.perf_counter()
        with generation(problem.schedule, images) as run:
            for scale in range(len(problem.schedule)):
                if run.begin_scale(scale):
                    loop.run_scale(scale)
        host = time.perf_counter() - started
        synchronize(problem.device)
        total = time.perf_counter() - started
    return Run(clock.milliseconds()[::2], 1e3 * total, 1e3 * host, report_of(run))


@dataclass
class Measured:
    """One variant at one batch size; times are medians.

    `floor_ms` and `roofline_share` are of the FLOPs alone, `floor_step_ms` of FLOPs or bytes by scale.
    `dense_first_s` and `dense_ms` are of a pruning program that computes everything: its first dense
    generation, compilation included, and the transformer's time in another.
    """

    model: str
    variant: str
    images: int
    first_s: float
    compile_s: float
    warm_compile_s: float | None
    step_ms: list[float]
    transformer_ms: float
    total_ms: float
    host_ms: float
    spread: float
    peak_gib: float | None
    kernels: int | None
    launches: int | None
    flops: int | None
    floor_ms: float | None
    floor_step_ms: list[float] | None
    roofline_share: float | None
    images_per_s: float
    notes: list[str] = field(default_factory=list)
    kept: str = ""
    dense_first_s: float | None = None
    dense_ms: float | None = None


def measure(
    problem: Problem,
    variant: str,
    make: Callable[[], Any],
    images: int,
    rounds: int,
    roof: Roof | None,
    warm: bool,
) -> Measured:
    """Compile from nothing in this process, warm up, and measure."""
    torch.compiler.reset()
    gc.collect()  # programs of the row before hold recordings, and these its caches
    if hasattr(problem, "model"):
        problem.cache(images)
    on_cuda = problem.device == "cuda"
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    transformer = make()
    started = time.perf_counter()
    generate(problem, transformer, images)
    first = time.perf_counter() - started
    generate(problem, transformer, images)
    with settled_heap():
        runs = [generate(problem, transformer, images, seed) for seed in range(rounds)]
    total = statistics.median(run.total_ms for run in runs)
    transformer_ms = [sum(run.step_ms) for run in runs]
    median = statistics.median(transformer_ms)
    report = runs[-1].report
    flops = None if report is None else report.flops
    floor = None if flops is None or roof is None else 1e3 * flops / roof.flops_per_s
    kernels, launches = _launched(problem, transformer, images) if on_cuda else (None, None)
    # Mapped caches are not torch's; they stay from before the first generation to the last.
    peak = (torch.cuda.max_memory_allocated() + mapped_bytes("cuda")) / 2**30 if on_cuda else None
    notes = [] if report is None else [*map(str, report.fallbacks), *report.to_json()["notes"]]
    if on_cuda and hasattr(problem, "model") and problem.layout == "shared" and not mapped_bytes("cuda"):
        notes.append("the device mapped no memory: the caches share none")
    dense_s = dense_ms = None
    if report is not None and report.controller.options.prunes:
        with dense():
            again = time.perf_counter()
            generate(problem, transformer, images)
            dense_s = time.perf_counter() - again
            dense_ms = sum(generate(problem, transformer, images).step_ms)
    warm_s = None
    if warm:
        torch.compiler.reset()
        again = time.perf_counter()
        generate(problem, make(), images)
        warm_s = time.perf_counter() - again - total / 1e3
    return Measured(
        model=problem.name,
        variant=variant,
        images=images,
        first_s=first,
        compile_s=max(0.0, first - total / 1e3),
        warm_compile_s=warm_s,
        step_ms=[statistics.median(ms) for ms in zip(*(run.step_ms for run in runs), strict=True)],
        transformer_ms=median,
        total_ms=total,
        host_ms=statistics.median(run.host_ms for run in runs),
        spread=(max(transformer_ms) - min(transformer_ms)) / median,
        peak_gib=peak,
        kernels=kernels,
        launches=launches,
        flops=flops,
        floor_ms=floor,
        floor_step_ms=None if report is None or roof is None else roof.floors_ms(report),
        roofline_share=None if floor is None else floor / median,
        images_per_s=1e3 * images / total,
        notes=notes,
        kept="" if report is None else f"{report.flops / max(report.flops_dense, 1):.0%} of dense FLOPs",
        dense_first_s=dense_s,
        dense_ms=dense_ms,
    )


def _launched(problem: Problem, transformer: Any, images: int) -> tuple[int, int]:
    """Kernels that a generation runs, and calls by which the host launches them."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        generate(problem, transformer, images)
    events = profile.events()
    kernels = sum(event.device_type.name == "CUDA" for event in events)
    launches = sum("Launch" in event.name and event.name.startswith("cu") for event in events)
    return kernels, launches
