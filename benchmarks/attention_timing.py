"""Times of attentions on a device: problems as a model poses them, CUDA graphs, interleaved replays."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

STOCK = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
L2_BYTES = 3 * 2**26
Inputs = tuple[Tensor, Tensor, Tensor]
Call = Callable[[Tensor, Tensor, Tensor], Any]


@dataclass(frozen=True)
class Problem:
    batch: int
    heads: int
    queries: int
    keys: int
    width: int

    @property
    def flops(self) -> int:
        return 4 * self.batch * self.heads * self.queries * self.keys * self.width

    def sets(self) -> list[Inputs]:
        """Inputs as a model makes them: unit keys and queries of norm 4, K/V as views of a longer cache."""
        shapes = [(self.batch, self.heads, n, self.width) for n in (self.queries, self.keys, self.keys)]
        size = sum(2 * torch.Size(shape).numel() for shape in shapes)
        count = max(2, min(8, -(-L2_BYTES // size)))
        found = []
        for _ in range(count):
            q = 4 * F.normalize(torch.randn(shapes[0], device="cuda"), dim=-1)
            k, v = (
                torch.randn(self.batch, self.heads, self.keys + 64, self.width, device="cuda") for _ in "kv"
            )
            k, v = (x.bfloat16()[:, :, : self.keys] for x in (F.normalize(k, dim=-1), v))
            found.append((q.bfloat16(), k, v))
        return found


def padding(problem: Problem, length: int) -> Tensor:
    """A number per key, -inf behind `length` of them: `[B, 1, 1, Lk]` in the dtype of the operands."""
    mask = torch.zeros(problem.batch, 1, 1, problem.keys, device="cuda", dtype=torch.bfloat16)
    mask[..., length:] = float("-inf")
    return mask


def stock(backend: SDPBackend, mask: Tensor | None = None) -> Call:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)

    return call


def capture(call: Call, sets: Sequence[Inputs], repeats: int) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for inputs in sets[:2]:
            call(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for inputs in sets:
                call(*inputs)
    return graph


def timed(run: Callable[[], Any]) -> float:
    """Milliseconds on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def medians(calls: dict[str, Call], problem: Problem, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """Microseconds per call of every candidate that runs, and the error of those that do not."""
    sets = problem.sets()
    # About half a millisecond per replay, so that launching it is noise; no kernel takes less than two us.
    repeats = max(1, round(0.5e-3 / max(problem.flops / 500e12, 2e-6) / len(sets)))
    graphs, errors = {}, {}
    for name, call in calls.items():
        try:
            graphs[name] = capture(call, sets, repeats)
        except Exception as error:  # a candidate that does not run is a row of the table
            errors[name] = f"{type(error).__name__}: {str(error)[:160]}"
            torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in graphs}
    order = list(graphs)
    for turn in range(rounds + 2):
        random.shuffle(order)
        for name in order:
            taken = timed(graphs[name].replay) * 1e3 / repeats / len(sets)
            if turn >= 2:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}, errors
