"""What the backend costs on graphs that it cannot prune, over plain Inductor: time to compile and to run.

    python -m benchmarks.overhead [--repeats 5] [--rounds 40] [--json]
    python -m benchmarks.overhead --only "1 layer, 16 x 32" --repeats 1 --rounds 150

Compilations of both alternate, with Inductor's caches off (what its C++ compiler made is kept: it is the
same for both, and would hide what Python takes). Calls alternate in rounds; a ratio compares two calls of
the same round. "In a generation" is a graph that was compiled and is called while one is open: one Dynamo
function is called with our program and with the program's own Inductor function in turn. Of two functions
compiled one after another the times differ by several percent, with where their memory lies. "Twice the same"
compares Inductor's function with itself in the same rounds: what it is away from 1 is noise. "Own us" is what
our program takes around a graph that does nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
import types
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from toprovar_fx.backend import toprovar
from toprovar_fx.dense_program import DenseProgram
from toprovar_fx.evaluation.timing import Timing, interleave
from toprovar_fx.runtime.generation import generation
from toprovar_fx.schedules import Schedule

# Of one timing.
FEWEST_CALLS, LEAST_SECONDS = 20, 0.02
# Of a program around a graph that does nothing.
OWN_CALLS, OWN_REPEATS = 10_000, 9
BACKENDS: Mapping[str, Mapping[str, Any]] = {
    "inductor": {"backend": "inductor"},
    "toprovar": {"backend": "toprovar", "options": {"preset": "lossless"}},
}


class Feedforward(nn.Module):
    """No attention: residual layers of norm, linear, GELU, linear."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        layers = (
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
            )
            for _ in range(depth)
        )
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[R, L, C] -> [R, L, C]."""
        for layer in self.layers:
            x = x + layer(x)
        return x


class Causal(nn.Module):
    """Attention that has to be refused: it is causal, as in a language model."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """[R, L, C] -> [R, L, C]."""
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(mixed.transpose(1, 2).flatten(2))
        return x


# name: module, tokens, width
CASES: Mapping[str, tuple[Callable[[], nn.Module], int, int]] = {
    "1 layer, 16 x 32": (lambda: Feedforward(1, 32), 16, 32),
    "4 layers, 256 x 128": (lambda: Feedforward(4, 128), 256, 128),
    "16 layers, 256 x 128": (lambda: Feedforward(16, 128), 256, 128),
    "causal, 2 layers, 64 x 64": (lambda: Causal(2, 64), 64, 64),
    "causal, 12 layers, 256 x 128": (lambda: Causal(12, 128), 256, 128),
}


def compile_seconds(build: Callable[[], nn.Module], hidden: Tensor, repeats: int) -> dict[str, list[float]]:
    """Seconds of the first call of a fresh model, both backends in turn; the first pair only warms up."""
    found: dict[str, list[float]] = {name: [] for name in BACKENDS}
    for repeat in range(repeats + 1):
        names = list(BACKENDS) if repeat % 2 else list(BACKENDS)[::-1]
        for name in names:
            torch.compiler.reset()
            forward = torch.compile(build().eval(), dynamic=True, **BACKENDS[name])
            # What earlier compilations left takes 0.3 s to collect, always in the same backend's turn.
            gc.collect()
            started = time.perf_counter()
            forward(hidden)
            if repeat:
                found[name].append(time.perf_counter() - started)
    return found


def apart(model: nn.Module) -> nn.Module:
    """The model with code of its own: graphs of one code object are searched one after another."""
    kind = type(model)
    code = kind.forward.__code__.replace()
    forward = types.FunctionType(code, kind.forward.__globals__, "forward")
    model.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return model.eval()


class Switched:
    """A backend: Dynamo's function calls this backend's program, or the Inductor function within it."""

    program: DenseProgram
    arguments: tuple[Any, ...]
    _called: Callable[..., Any]

    def __call__(self, graph: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        """Compile the graph."""
        program = toprovar(graph, example_inputs, options=BACKENDS["toprovar"]["options"])
        if not isinstance(program, DenseProgram):
            raise TypeError(f"{type(program).__name__}: expected a graph that is not pruned")
        self.program, self._called = program, program.call

        def call(*arguments: Any) -> Any:
            self.arguments = arguments
            return self._called(*arguments)

        return call

    def timed(self, calls: Callable[[], None], ours: bool) -> Callable[[], None]:
        """The calls, with or without our program."""

        def run() -> None:
            self._called = self.program if ours else self.program.call
            calls()

        return run


def run_timings(
    build: Callable[[], nn.Module], hidden: Tensor, rounds: int
) -> tuple[dict[str, Timing], int, float]:
    """Times of many calls in a row, how many they are (20, or what takes 20 ms), and our own microseconds."""
    torch.compiler.reset()
    forward = {n: torch.compile(apart(build()), dynamic=True, **given) for n, given in BACKENDS.items()}
    count = max(FEWEST_CALLS, math.ceil(LEAST_SECONDS / _seconds(forward["inductor"], hidden)))
    variants = {name: partial(_repeat, call, hidden, count) for name, call in forward.items()}
    timed = interleave(variants, rounds=rounds)
    switched = Switched()
    inside = torch.compile(apart(build()), dynamic=True, backend=switched)
    with generation(Schedule(((1, 1), (4, 4))), 1) as run:
        run.begin_scale(0)
        inside(hidden)
        calls = partial(_repeat, inside, hidden, count)
        inductor = switched.timed(calls, ours=False)
        three = {"graph": inductor, "in a generation": switched.timed(calls, ours=True), "again": inductor}
        found = {**timed, **interleave(three, rounds=rounds)}
        return found, count, own_us(switched.program, switched.arguments)


def own_us(program: DenseProgram, arguments: tuple[Any, ...]) -> float:
    """Microseconds of a call of the program beyond those of its graph, in the generation that is open."""

    def nothing(*arguments: Any) -> None:
        pass

    def microseconds(call: Callable[..., Any]) -> float:
        started = time.perf_counter()
        for _ in range(OWN_CALLS):
            call(*arguments)
        return (time.perf_counter() - started) / OWN_CALLS * 1e6

    graph, program.call = program.call, nothing
    try:
        return min(microseconds(program) - microseconds(nothing) for _ in range(OWN_REPEATS))
    finally:
        program.call = graph


def _repeat(call: Callable[[Tensor], Tensor], hidden: Tensor, count: int) -> None:
    for _ in range(count):
        call(hidden)


def _seconds(call: Callable[[Tensor], Tensor], hidden: Tensor) -> float:
    """Of one call, roughly, once it is compiled."""
    call(hidden)
    started = time.perf_counter()
    for _ in range(FEWEST_CALLS):
        call(hidden)
    return (time.perf_counter() - started) / FEWEST_CALLS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="compilations of each backend per case")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of 20 calls or 20 ms each")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--only", choices=[*CASES], help="one case (default: all)")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
    result: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cases": {}}
    print(
        f"{'case':30s} {'compile s':>10s} {'ratio':>6s} {'run us':>8s} {'ratio':>6s} "
        f"{'in a generation':>15s} {'twice the same':>14s} {'own us':>7s}"
    )
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        for name in CASES if chosen.only is None else [chosen.only]:
            build, tokens, width = CASES[name]
            hidden = torch.randn(2, tokens, width)
            compiled = compile_seconds(build, hidden, chosen.repeats)
            pairs = zip(compiled["toprovar"], compiled["inductor"], strict=True)
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            timed, count, own = run_timings(build, hidden, chosen.rounds)
            dense, graph = timed["inductor"], timed["graph"]
            row = {
                "compile_s_inductor": statistics.median(compiled["inductor"]),
                "compile_ratio": ratio,
                "run_us_inductor": dense.median_s / count * 1e6,
                "run_ratio": 1 / timed["toprovar"].speedup_over(dense),
                "run_ratio_in_a_generation": 1 / timed["in a generation"].speedup_over(graph),
                "run_ratio_twice_the_same": 1 / timed["again"].speedup_over(graph),
                "own_us_in_a_generation": own,
            }
            result["cases"][name] = {key: round(value, 4) for key, value in row.items()}
            print(
                f"{name:30s} {row['compile_s_inductor']:10.2f} {ratio:6.3f} {row['run_us_inductor']:8.0f} "
                f"{row['run_ratio']:6.3f} {row['run_ratio_in_a_generation']:15.3f} "
                f"{row['run_ratio_twice_the_same']:14.3f} {row['own_us_in_a_generation']:7.2f}",
                flush=True,
            )
    if chosen.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
