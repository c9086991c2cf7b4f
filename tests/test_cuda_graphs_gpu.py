"""Recorded scale steps on CUDA compute what the calls compute, one graph launch per scale."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from toprovar_fx.criteria.weighing import Weighing
from toprovar_fx.readback import Reading
from toprovar_fx.runtime.cuda_recorder import CudaRecorder
from toprovar_fx.runtime.recorded_function import memory_of
from toprovar_fx.runtime.statistics import Statistics

from .models.subjects import OPEN, SQUARE, Outcome, TinyInfinity, generate, identical, worst
from .replayed_steps import DECIDED, LOSSLESS, Kept, compiled

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("many_graphs")]

ONLINE = {**OPEN, "entropy_source": "previous_scale", "min_scale": 2}
FEW = {**DECIDED, "keep": {-2: {1: 0.5}, -1: {1: 0.25}}, "ranking_depth": 0.0}
WAITING = {**ONLINE, "entropy_source": "dense_layer"}
CASES = {
    "dense": ("eager", torch.float32, LOSSLESS, 1e-5),
    "pruned in bf16": ("eager", torch.bfloat16, DECIDED, 1e-2),
    "pruned by Inductor": ("inductor", torch.float32, FEW, 1e-3),
}


def deviation(found: Outcome, expected: Outcome) -> float:
    largest = max(float(logits.abs().max()) for logits in expected.logits)
    return worst(found.logits, expected.logits) / largest


@pytest.mark.slow
@pytest.mark.parametrize(("lowering", "dtype", "options", "limit"), CASES.values(), ids=CASES)
def test_cuda_graphs_compute_what_the_calls_compute(lowering, dtype, options, limit):
    subject = Kept(device="cuda", dtype=dtype)
    forward = compiled(subject, options, lowering=lowering, cuda_graphs=True)
    without = compiled(subject, options, lowering="eager", cuda_graphs=False)
    first = generate(subject, forward)
    copies = [logits.clone() for logits in first.logits]
    for images, seed in ((1, 1), (1, 2), (2, 1), (1, 3)):
        found = generate(subject, forward, images, seed=seed)
        expected = generate(subject, without, images, seed=seed)
        assert deviation(found, expected) < limit, (images, seed)
        assert found.counts(5) == expected.counts(5)
        assert not found.controller.ledger.notes
    assert identical(first.logits, copies), "a replay overwrote what was returned before"
    with pytest.raises(KeyboardInterrupt):
        generate(subject, forward, seed=5, fail_at=4)
    assert deviation(generate(subject, forward), first) < limit


@pytest.mark.parametrize("options", [{**LOSSLESS, "cuda_graphs": True}, {"preset": "lossless"}])
def test_cuda_graphs_launch_one_graph_per_scale(options):
    """By default too."""
    subject = Kept(device="cuda", dtype=torch.bfloat16)
    forward = compiled(subject, options, lowering="inductor")
    generate(subject, forward)
    generate(subject, forward)
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        generate(subject, forward)
    names = [event.name for event in profile.events() if "Launch" in event.name]
    assert sum("GraphLaunch" in name for name in names) == len(SQUARE), names


def test_cuda_graphs_and_caches_that_move():
    subject = TinyInfinity(device="cuda")
    forward = compiled(subject, LOSSLESS, cuda_graphs="auto")
    expected = generate(subject, compiled(subject, {**LOSSLESS, "unit": "block"}))
    alive = [generate(subject, forward) for _ in range(6)]
    for found in alive:
        assert deviation(found, expected) < 2e-4


RATES = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
RULE = Weighing("shared", True, "rank", 0.1, 1.0, "mean")
# By function: sizes of its maps of five layers, other tensors, constants.
STATISTICS = {
    "scope": ((5, 2, 16, 16), {}, {"centre": True, "beta": 0.05}),
    "rho": ((2, 5, 256), {}, {"images": 1, "rule": "shared"}),
    "weigh": ((2, 5, 256), {"rates": RATES}, {"images": 1, "rule": RULE}),
}


@pytest.mark.parametrize(("size", "others", "constants"), STATISTICS.values(), ids=STATISTICS)
def test_statistics_that_are_recorded_are_the_statistics(request, size, others, constants):
    name = request.node.callspec.id
    recorded = getattr(Statistics.recorded(memory_of(torch.device("cuda"))), name)
    plain = getattr(Statistics.recorded(None), name)
    for seed in range(3):
        maps = torch.rand(size, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
        given = {"statistics" if name == "weigh" else "maps": maps}
        given |= {key: value.cuda() for key, value in others.items()}
        for ours, expected in zip(recorded(given, **constants), plain(given, **constants), strict=True):
            torch.testing.assert_close(ours, expected)
    assert len(recorded._recordings) == 1 and None not in recorded._recordings.values()


@pytest.mark.parametrize("online", [ONLINE, WAITING], ids=["one call a scale", "two calls a scale"])
def test_what_is_decided_online_is_what_blocks_decide(online):
    """The host runs ahead of the device: D, R and K are read when they are asked for."""
    options = {**online, "tau": 0.5}
    subject = Kept(device="cuda")
    steps = compiled(subject, {**options, "unit": "step"}, cuda_graphs=True)
    blocks = compiled(subject, {**options, "unit": "block"})
    for seed in (1, 12, 7, 1, 1, 12):
        found, expected = (generate(subject, forward, seed=seed) for forward in (steps, blocks))
        assert found.controller.depth == expected.controller.depth
        assert found.keeps.keys() == expected.keeps.keys()
        assert not found.controller.ledger.notes, "a scale ran by blocks"
        assert all(torch.equal(keep, expected.keeps[place]) for place, keep in found.keeps.items())
        assert deviation(found, expected) < 2e-4


def test_cuda_graphs_from_two_streams():
    subject = Kept(device="cuda")
    forward = compiled(subject, DECIDED, cuda_graphs=True)
    expected = generate(subject, forward)
    other = torch.cuda.Stream()
    for stream in (other, torch.cuda.current_stream(), other):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = generate(subject, forward)
        stream.synchronize()
        assert identical(found.logits, expected.logits)


def at_once(
    subjects: list[Kept], forward: list[Callable[..., Tensor]], seeds: tuple[int, int] = (1, 1)
) -> list[Outcome | None]:
    """A generation of each, in two threads and on two streams."""
    found: list[Outcome | None] = [None, None]

    def run(at: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found[at] = generate(subjects[at], forward[at], seed=seeds[at])
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_cuda_graphs_in_two_threads():
    """Threads take turns; each has its caches, so each has its recordings."""
    subjects = [Kept(device="cuda"), Kept(device="cuda")]
    forward = [compiled(subject, DECIDED, cuda_graphs=True) for subject in subjects]
    expected = [generate(subject, call) for subject, call in zip(subjects, forward, strict=True)]
    found = at_once(subjects, forward)
    for one, other in zip(found, expected, strict=True):
        assert one is not None and identical(one.logits, other.logits)


@pytest.mark.parametrize("online", [ONLINE, WAITING], ids=["one call a scale", "two calls a scale"])
def test_steps_staged_in_two_threads(online, monkeypatch):
    """One program and its buffers: what one thread staged, the other may have overwritten by its replay."""
    monkeypatch.setattr(Reading, "arrived", False)
    subjects = [Kept(device="cuda"), Kept(device="cuda")]
    subjects[1].model = subjects[0].model
    forward, seeds = compiled(subjects[0], {**online, "unit": "step"}, cuda_graphs=True), (1, 12)
    expected = [generate(subject, forward, seed=seed) for subject, seed in zip(subjects, seeds, strict=True)]
    assert any(outcome.counts(5) != [SQUARE.tokens[5]] * subjects[0].layers for outcome in expected)
    for _ in range(6):
        found = at_once(subjects, [forward, forward], seeds)
        for one, other in zip(found, expected, strict=True):
            assert one is not None and identical(one.logits, other.logits)


def test_cuda_graphs_recorded_in_two_threads():
    """As above, but both record: each begins by waiting for the device, which would break the other."""
    subjects = [Kept(device="cuda"), Kept(device="cuda")]
    forward = [compiled(subject, DECIDED, cuda_graphs=True) for subject in subjects]
    found = at_once(subjects, forward)
    for subject, outcome in zip(subjects, found, strict=True):
        assert outcome is not None and not outcome.controller.ledger.notes
        assert deviation(outcome, generate(subject, compiled(subject, {**DECIDED, "unit": "block"}))) < 1e-4


def test_what_cuda_cannot_record_leaves_the_device_usable():
    recorder, x = CudaRecorder(torch.device("cuda")), torch.ones(4, device="cuda")
    before = torch.cuda.current_stream()

    def waits(x: Tensor) -> tuple[Tensor, ...]:
        return (x + float(x.sum()),)

    recorder.warm(waits, (x,))
    with pytest.raises(RuntimeError):
        recorder.record(waits, (x,))
    assert torch.cuda.current_stream() == before
    recording = recorder.record(lambda x: (x * 2,), (x,))
    recording.replay()
    assert (recording.outputs[0] == 2).all()
