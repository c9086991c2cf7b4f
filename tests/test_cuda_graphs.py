"""Replays of recorded scale steps: the buffers on a CPU with a recorder of our own, the graphs on CUDA."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.analysis.repeatable import obstacle_to_repeating
from toprovar_fx.errors import GraphError
from toprovar_fx.lowering.region import Region
from toprovar_fx.options import Options
from toprovar_fx.runtime.cuda_graphs import GraphedCall, GraphMemory
from toprovar_fx.runtime.cuda_recorder import CudaRecorder

from .models.recorders import CpuRecorder
from .models.subjects import (
    MANY_GRAPHS,
    OPEN,
    SQUARE,
    Outcome,
    State,
    TinyInfinity,
    generate,
    identical,
    worst,
)

KEEP = {3: 0.5, 4: {1: 0.25, 2: 0.0, 3: 0.7}, 5: {1: 0.3, 2: 0.6}}
DECIDED = {**OPEN, "keep": KEEP, "entropy_source": "previous_scale", "unit": "step"}
LOSSLESS = {"preset": "lossless", "unit": "step"}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[CpuRecorder]:
    """Programs on a CPU record with it."""
    made = CpuRecorder()

    def memory(options: Options, device: object) -> GraphMemory | None:
        return GraphMemory(made, False) if options.unit == "step" else None

    for user in ("toprovar_fx.runtime.whole_step", "toprovar_fx.dense_program"):
        monkeypatch.setattr(f"{user}.graph_memory", memory)
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


def compiled(subject: TinyInfinity, options: dict[str, object], **more: object) -> Any:
    settings = {"lowering": "eager", **options, **more}
    return torch.compile(subject.model, backend="toprovar", options=settings)


class Kept(TinyInfinity):
    """Its caches stay in place from one generation to the next."""

    def state(self, images: int, schedule: Any) -> State:
        fresh = super().state(images, schedule)
        known = self.__dict__.setdefault("known", {})
        return State(known.setdefault((images, schedule), fresh).cache, fresh.context)


@pytest.mark.parametrize("options", [LOSSLESS, DECIDED], ids=["lossless", "pruned"])
def test_replays_are_the_calls(recorder, options):
    subject = Kept()
    with MANY_GRAPHS:
        plain = compiled(subject, {**options, "unit": "block"})
        forward = compiled(subject, options)
        first = generate(subject, forward)
        assert recorder.records == len(SQUARE)
        for images, seed in ((1, 1), (1, 2), (2, 1), (1, 3)):
            expected = generate(subject, plain, images, seed=seed)
            found = generate(subject, forward, images, seed=seed)
            assert identical(found.logits, expected.logits), (images, seed)
            assert not found.controller.ledger.notes
        # What was returned before stays as it was.
        assert identical(first.logits, generate(subject, plain).logits)
    # One recording per scale and batch size; Dynamo may run the first batch in its graph of any batch later.
    assert recorder.records in (2 * len(SQUARE), 3 * len(SQUARE))
    assert recorder.replays == 5 * len(SQUARE)


def test_another_text_and_its_length(recorder):
    subject = Kept()
    with MANY_GRAPHS:
        forward, plain = compiled(subject, LOSSLESS), compiled(subject, {**LOSSLESS, "unit": "block"})
        generate(subject, forward)
        for tokens in (8, 6):
            text = torch.randn(2, tokens, subject.model.config.text_channels)
            lengths = torch.tensor([tokens, tokens - 2])

            def state(images, schedule, text=text, lengths=lengths):
                return State(
                    Kept.state(subject, images, schedule).cache, subject.model.prepare_text(text, lengths)
                )

            subject.state = state
            assert identical(generate(subject, forward).logits, generate(subject, plain).logits)


def test_an_interrupted_generation_leaves_nothing(recorder):
    subject = Kept()
    with MANY_GRAPHS:
        forward, plain = compiled(subject, DECIDED), compiled(subject, {**DECIDED, "unit": "block"})
        generate(subject, forward)
        with pytest.raises(KeyboardInterrupt):
            generate(subject, forward, seed=5, fail_at=4)
        assert identical(generate(subject, forward, seed=2).logits, generate(subject, plain, seed=2).logits)


def test_caches_that_move_are_recorded_again_and_then_no_more(recorder):
    subject = TinyInfinity()
    with MANY_GRAPHS:
        forward, plain = compiled(subject, LOSSLESS), compiled(subject, {**LOSSLESS, "unit": "block"})
        expected = generate(subject, plain)
        alive = []
        for _ in range(6):
            alive.append(generate(subject, forward))
            assert identical(alive[-1].logits, expected.logits)
    assert recorder.records == 4 * len(SQUARE)
    notes = alive[-1].controller.ledger.notes
    assert {why.reason for whys in notes.values() for why in whys} == {Reason.NOT_CAPTURED}
    assert sorted(notes) == list(range(len(SQUARE)))


def test_what_cannot_be_recorded_runs_and_says_why(recorder):
    recorder.fails = "operation not permitted when stream is capturing"
    subject = Kept()
    with MANY_GRAPHS:
        found = generate(subject, compiled(subject, DECIDED))
        expected = generate(subject, compiled(subject, {**DECIDED, "unit": "block"}))
    assert identical(found.logits, expected.logits)
    whys = {why for notes in found.controller.ledger.notes.values() for why in notes}
    assert {(why.reason, why.detail) for why in whys} == {(Reason.NOT_CAPTURED, recorder.fails)}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_graphs_that_are_required_need_cuda():
    if torch.cuda.is_available():
        pytest.skip("the device is there")
    torch.compiler.reset()
    subject = TinyInfinity()
    with pytest.raises(Exception, match="cuda_graphs=True: expected a CUDA device, not cpu"):
        generate(subject, compiled(subject, LOSSLESS, cuda_graphs=True))


def captured(function: Any, *tensors: Tensor) -> fx.GraphModule:
    """The graph that Dynamo captures of a function."""
    graphs: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, inputs: object) -> Any:
        graphs.append(gm)
        return gm.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, fullgraph=True)(*tensors)
    return graphs[0]


def writes_its_cache(cache, rows):
    cache[:, 0:2] = rows
    y = rows + 1
    y.mul_(2)
    return cache[:, :2] + y


def test_graphs_that_may_run_twice():
    assert obstacle_to_repeating(captured(writes_its_cache, torch.zeros(2, 3), torch.ones(2, 2)).graph) == ""


def counts(x, n):
    n.add_(1)
    return x


def counts_view(x, n):
    n.view(-1).add_(1)
    return x


def reads_first(cache, rows):
    y = cache + rows
    cache[:, 0:2] = y
    return y


def accumulates(cache, rows):
    cache += rows
    return cache


def writes_view(cache, rows):
    cache.transpose(0, 1)[0:2] = rows
    return rows


def returns_out(x, y):
    return torch.add(x, 1, out=y)


def activates_by_position(x, n):
    return nn.functional.silu(n, True) + x


def drops_out(x, y):
    return nn.functional.dropout(x, 0.5) + y


def draws(x, y):
    return torch.rand_like(x) + y


@pytest.mark.parametrize(
    "function",
    [
        *(counts, counts_view, reads_first, accumulates, writes_view, returns_out, activates_by_position),
        *(drops_out, draws),
    ],
)
def test_graphs_that_may_not(function):
    assert obstacle_to_repeating(captured(function, torch.zeros(2, 2), torch.ones(2, 2)).graph)


def scaled(x, w):
    return x * w


def graphed_call(recorder: CpuRecorder, required: bool = False) -> tuple[Region, GraphedCall]:
    region = Region(captured(scaled, torch.ones(3), torch.ones(3)), "eager")
    return region, GraphedCall(region, GraphMemory(recorder, required))


def test_a_required_recording_that_fails_raises():
    region, graphed = graphed_call(CpuRecorder("not now"), required=True)
    with pytest.raises(GraphError, match=r"NOT_CAPTURED.*not now"):
        graphed(region, (torch.zeros(3), torch.zeros(3)), print)


def test_inputs_are_copied_where_they_changed():
    region, graphed = graphed_call(CpuRecorder())
    x, w = torch.ones(3), nn.Parameter(torch.full((3,), 2.0), requires_grad=False)

    def found(value: Tensor) -> float:
        return float(graphed(region, (value, w), print)[0].sum()) / 3

    assert found(x) == 2
    x.mul_(3)
    assert found(x) == 6
    # Held, not copied.
    w.data.fill_(5)
    assert found(x) == 15
    with torch.inference_mode():
        y = torch.full((3,), 4.0)
        assert found(y) == 20
        y.add_(1)
        assert found(y) == 25


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_input_that_a_replay_wrote_is_copied_again(device):
    """One graph writes a cache that another reads, as when a model's graph breaks between them."""
    recorder = CpuRecorder() if device == "cpu" else CudaRecorder(torch.device(device))
    writing = Region(captured(writes_its_cache, torch.zeros(2, 3), torch.ones(2, 2)), "eager")
    reading = Region(captured(scaled, torch.ones(2, 3), torch.ones(3)), "eager")
    write, read = (GraphedCall(each, GraphMemory(recorder, True)) for each in (writing, reading))
    cache = torch.zeros(2, 3, device=device)
    for value in (1.0, 2.0, 3.0):
        write(writing, (cache, torch.full((2, 2), value, device=device)), print)
        (found,) = read(reading, (cache, torch.ones(3, device=device)), print)
        assert torch.equal(found, cache) and cache[0, 0] == value


def test_another_layout_of_the_same_sizes_has_a_recording_of_its_own():
    region, graphed = graphed_call(recorder := CpuRecorder())
    w = torch.tensor([1.0, 2.0, 3.0])
    for layout in (torch.rand(3), torch.rand(6)[::2], torch.rand(3), torch.rand(6)[::2]):
        assert torch.equal(graphed(region, (layout, w), print)[0], layout * w)
    assert recorder.records == 2


def test_inputs_that_share_memory_with_what_is_written_are_refused():
    def copies(cache, rows):
        cache[:, 0:2] = rows[:, 0:2] + 1
        return cache + rows

    region = Region(captured(copies, torch.zeros(2, 4), torch.ones(2, 4)), "eager")
    graphed = GraphedCall(region, GraphMemory(CpuRecorder(), False))
    told: list[Any] = []
    cache = torch.zeros(2, 4)
    for _ in range(2):
        expected = cache.clone()
        (wanted,) = region(expected, expected.view(2, 4))
        (found,) = graphed(region, (cache, cache.view(2, 4)), told.append)
        assert torch.equal(found, wanted)
    assert [why.detail for why in told] == ["an input shares memory with one that is written"] * 2


def test_results_that_need_gradients_are_computed():
    region, graphed = graphed_call(CpuRecorder())
    w, told = nn.Parameter(torch.full((3,), 2.0)), []
    for _ in range(2):
        w.grad = None
        graphed(region, (torch.ones(3), w), told.append)[0].sum().backward()
        assert w.grad is not None and w.grad.sum() == 3
    assert "gradients are wanted" in told[0].detail


def test_a_copy_that_failed_is_made_again(monkeypatch):
    region, graphed = graphed_call(CpuRecorder())
    x, w = torch.ones(3), torch.ones(3)
    graphed(region, (x, w), print)
    x.mul_(2)
    with monkeypatch.context() as patched:
        patched.setattr("toprovar_fx.runtime.cuda_graphs.copy_all", _out_of_memory)
        with pytest.raises(MemoryError):
            graphed(region, (x, w), print)
    assert graphed(region, (x, w), print)[0].sum() == 6


def _out_of_memory(*_: object) -> None:
    raise MemoryError


def test_expanded_inputs_and_those_of_other_devices_are_refused():
    region, graphed = graphed_call(CpuRecorder())
    told: list[Any] = []
    assert graphed(region, (torch.ones(1).expand(3), torch.ones(3)), told.append)[0].sum() == 3
    assert [why.detail for why in told] == ["an input is a view whose elements share memory"]
    recorder = CpuRecorder()
    recorder.accepts = lambda tensor: False
    region, graphed = graphed_call(recorder)
    graphed(region, (torch.ones(3), torch.ones(3)), told.append)
    assert told[-1].detail == "an input is on cpu"


# On CUDA.


FEW = {**DECIDED, "keep": {-2: {1: 0.5}, -1: {1: 0.25}}, "ranking_depth": 0.0}
CASES = {
    "dense": ("eager", torch.float32, LOSSLESS, 1e-5),
    "pruned in bf16": ("eager", torch.bfloat16, DECIDED, 1e-2),
    "pruned by Inductor": ("inductor", torch.float32, FEW, 1e-3),
}


def deviation(found: Outcome, expected: Outcome) -> float:
    largest = max(float(logits.abs().max()) for logits in expected.logits)
    return worst(found.logits, expected.logits) / largest


@pytest.fixture
def fresh() -> Any:
    torch.compiler.reset()
    with MANY_GRAPHS:
        yield
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(("lowering", "dtype", "options", "limit"), CASES.values(), ids=CASES)
def test_cuda_graphs_compute_what_the_calls_compute(fresh, lowering, dtype, options, limit):
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


@pytest.mark.gpu
def test_cuda_graphs_launch_one_graph_per_scale(fresh):
    subject = Kept(device="cuda", dtype=torch.bfloat16)
    forward = compiled(subject, LOSSLESS, lowering="inductor", cuda_graphs=True)
    generate(subject, forward)
    generate(subject, forward)
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        generate(subject, forward)
    names = [event.name for event in profile.events() if "Launch" in event.name]
    assert sum("GraphLaunch" in name for name in names) == len(SQUARE), names


@pytest.mark.gpu
def test_cuda_graphs_and_caches_that_move(fresh):
    subject = TinyInfinity(device="cuda")
    forward = compiled(subject, LOSSLESS, cuda_graphs="auto")
    expected = generate(subject, compiled(subject, {**LOSSLESS, "unit": "block"}))
    alive = [generate(subject, forward) for _ in range(6)]
    for found in alive:
        assert deviation(found, expected) < 2e-4


@pytest.mark.gpu
def test_cuda_graphs_from_two_streams(fresh):
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


@pytest.mark.gpu
def test_cuda_graphs_in_two_threads(fresh):
    """Threads take turns; each has its caches, so each has its recordings."""
    subjects = [Kept(device="cuda"), Kept(device="cuda")]
    forward = [compiled(subject, DECIDED, cuda_graphs=True) for subject in subjects]
    expected = [generate(subject, call) for subject, call in zip(subjects, forward, strict=True)]
    found: list[Outcome | None] = [None, None]

    def run(at: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found[at] = generate(subjects[at], forward[at])
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert one is not None and identical(one.logits, other.logits)


@pytest.mark.gpu
def test_cuda_graphs_recorded_in_two_threads(fresh):
    """As above, but both record: each begins by waiting for the device, which would break the other."""
    subjects = [Kept(device="cuda"), Kept(device="cuda")]
    forward = [compiled(subject, DECIDED, cuda_graphs=True) for subject in subjects]
    found: list[Outcome | None] = [None, None]

    def run(at: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found[at] = generate(subjects[at], forward[at])
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for subject, outcome in zip(subjects, found, strict=True):
        assert outcome is not None and not outcome.controller.ledger.notes
        assert deviation(outcome, generate(subject, compiled(subject, {**DECIDED, "unit": "block"}))) < 1e-4


@pytest.mark.gpu
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
