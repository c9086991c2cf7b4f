"""What the host does for a recorded scale step: a CPU is enough, for replays here do nothing.

    python -m benchmarks.host_step --layers 32            # as many as Infinity-2B
    python -m benchmarks.host_step --layers 14 --variant 25-5

Small scales of a recorded generation wait for the host, not for the card. Timed are, from the outside in: the
compiled model (Dynamo's guards and some twenty arguments a layer), our program, and the replay (finding the
recording, copying the inputs that changed; nothing is computed). Sizes of the model are small and the values
wrong. Medians over all scales but the first, in microseconds.

`wait` is from the call of the model to the replay: what an idle card waits for. It is given for the first two
scales and the others apart: of one token there is another program, and each of the two gets the text. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.infinity_measure import generate
from benchmarks.infinity_variants import TINY, TINY_SCHEDULE, Problem, transformers
from toprovar_fx.program import StepProgram
from toprovar_fx.runtime.cuda_graphs import GraphedCall, GraphMemory, Recording


class NothingRecorder:
    """Runs a call once and hands out its results ever after.

    Args:
        replayed: gets the time of every replay.
    """

    def __init__(self, replayed: list[float]) -> None:
        self._replayed = replayed

    def accepts(self, tensor: Tensor) -> bool:
        return True

    def warm(self, call: Callable[..., Any], arguments: Sequence[Any]) -> Sequence[Any]:
        return ()

    def record(self, call: Callable[..., Any], arguments: Sequence[Any]) -> Recording:
        return Recording(lambda: self._replayed.append(time.perf_counter()), tuple(call(*arguments)))

    def in_order(self) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def recorded_on_a_cpu() -> Iterator[list[float]]:
    """Programs that are made in the block record their steps, on any device; gives the times of replays."""
    replayed: list[float] = []
    users = ("toprovar_fx.runtime.step_parts", "toprovar_fx.dense_program")
    with ExitStack() as patches:
        for user in users:
            memory = lambda options, device: GraphMemory(NothingRecorder(replayed), required=False)  # noqa: E731
            patches.enter_context(mock.patch(f"{user}.graph_memory", memory))
        yield replayed


@contextmanager
def timed(owner: type, method: str, seconds: list[float]) -> Iterator[None]:
    """Note how long every call of a method takes."""
    plain = getattr(owner, method)

    def watched(*given: Any) -> Any:
        started = time.perf_counter()
        try:
            return plain(*given)
        finally:
            seconds.append(time.perf_counter() - started)

    with mock.patch.object(owner, method, watched):
        yield


class Called:
    """A transformer that notes when it is called."""

    def __init__(self, transformer: Any, calls: list[float]) -> None:
        self._transformer, self._calls = transformer, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def __call__(self, *given: Any) -> Any:
        self._calls.append(time.perf_counter())
        return self._transformer(*given)


def waits(calls: Sequence[float], replayed: Sequence[float], scales: int) -> dict[str, float]:
    """Median seconds from a call of the model to its replay, by scale; nothing if some call has none."""
    first_of = [bisect(replayed, called) for called in calls]
    if first_of[-1] == len(replayed) or len(set(first_of)) < len(calls):
        return {}
    each = [replayed[at] - called for at, called in zip(first_of, calls, strict=True)]
    first, second, *others = (statistics.median(each[at::scales]) for at in range(scales))
    return {"wait, first": first, "wait, second": second, "wait, others": statistics.median(others)}


def measure(layers: int, variant: str, rounds: int, replayed: list[float]) -> dict[str, float]:
    """Microseconds per scale by what is timed; `replayed` gets the times of replays."""
    torch.compiler.reset()  # a program takes the weights of four models, and then records no more
    problem = Problem("tiny", "cpu", torch.float32, model=(replace(TINY, depth=layers), TINY_SCHEDULE))
    made = transformers(problem, "eager")
    if variant not in made or not variant.startswith(("lossless", "50-10", "25-5", "criterion")):
        known = [name for name in made if name.startswith(("lossless", "50-10", "25-5", "criterion"))]
        raise SystemExit(f"--variant {variant}: expected one of {', '.join(known)}")
    transformer = made[variant]()
    for _ in range(3):
        generate(problem, transformer, 1)
    program: list[float] = []
    replay: list[float] = []
    model: list[float] = []
    with timed(StepProgram, "__call__", program), timed(GraphedCall, "__call__", replay):
        for _ in range(rounds):
            model += [ms / 1e3 for ms in generate(problem, transformer, 1).step_ms[1:]]
    calls: list[float] = []
    replayed.clear()
    for _ in range(rounds):
        generate(problem, Called(transformer, calls), 1)
    parts = {"model": model, "program": program, "replay": replay}
    found = {name: statistics.median(times) for name, times in parts.items() if times}
    found |= waits(calls, replayed, len(problem.schedule))
    return {name: round(1e6 * seconds, 1) for name, seconds in found.items()}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--variant", default="lossless", help="of benchmarks.infinity, of this backend")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args(given)
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    with recorded_on_a_cpu() as replayed:
        settings = chosen.layers, chosen.variant, chosen.rounds, replayed
        found = [measure(*settings) for _ in range(chosen.repeats)]
    print(f"{chosen.variant}, {chosen.layers} layers: us of a scale, {chosen.rounds} generations at a time")
    for name in found[0]:
        print(f"  {name:<12}", *(f"{each[name]:>8.1f}" for each in found))
    print(
        json.dumps(
            {
                "benchmark": "host_step",
                "machine": platform.machine(),
                "torch": torch.__version__,
                **vars(chosen),
                "us_per_scale": found,
            }
        )
    )


if __name__ == "__main__":
    main()
