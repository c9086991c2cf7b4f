"""Replays of recorded scale steps, and their buffers, on a CPU with a recorder of our own."""

from __future__ import annotations

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
from .models.subjects import MANY_GRAPHS, OPEN, SQUARE, State, TinyInfinity, generate, identical
from .replayed_steps import DECIDED, LOSSLESS, Kept, compiled


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[CpuRecorder]:
    """Programs on a CPU record with it."""
    made = CpuRecorder()

    def memory(options: Options, device: object) -> GraphMemory:
        return GraphMemory(made, False)

    for user in ("toprovar_fx.runtime.whole_step", "toprovar_fx.dense_program"):
        monkeypatch.setattr(f"{user}.graph_memory", memory)
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


def test_an_online_generation_replays_and_measures_its_scope_by_a_recording(recorder):
    """Depth, scope and counts are found in every image anew; the scales before them are planned once."""
    subject, options = Kept(), {**OPEN, "entropy_source": "previous_scale", "min_scale": 2, "tau": 0.5}
    depths = set()
    with MANY_GRAPHS:
        plain, forward = compiled(subject, options), compiled(subject, {**options, "unit": "step"})
        for seed in (1, 3, 7, 1, 7, 3):
            expected, found = (generate(subject, call, seed=seed) for call in (plain, forward))
            assert identical(found.logits, expected.logits), seed
            ours, theirs = found.controller.ledger, expected.controller.ledger
            assert ours.detail == theirs.detail and len(ours.detail) == subject.layers
            assert (ours.rho, ours.depth) == (theirs.rho, theirs.depth)
            depths.add(ours.depth)
    assert len(depths) == 3


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
    torch._foreach_add_([y, rows - 1], 1)
    y.chunk(2)[1].add_(1)
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


def counts_in_a_list(x, n):
    torch._foreach_add_([n], 1)
    return x


def counts_behind_another(x, n):
    torch._foreach_add_([x + 1, n], 1)
    return x


def counts_a_broadcast(x, n):
    torch.broadcast_tensors(x + 1, n)[1].add_(1)
    return x


def activates_by_position(x, n):
    return nn.functional.silu(n, True) + x


def drops_out(x, y):
    return nn.functional.dropout(x, 0.5) + y


def draws(x, y):
    return torch.rand_like(x) + y


@pytest.mark.parametrize(
    "function",
    [
        *(counts, counts_view, counts_in_a_list, counts_behind_another, counts_a_broadcast),
        *(reads_first, accumulates, writes_view, returns_out, activates_by_position, drops_out, draws),
    ],
)
def test_graphs_that_may_not(function):
    assert obstacle_to_repeating(captured(function, torch.zeros(2, 2), torch.ones(2, 2)).graph)


def scaled(x, w):
    return x * w


def scaled_and_handed_on(x, w):
    return x * w, x.view(-1)


def graphed_call(
    recorder: CpuRecorder, required: bool = False, function: Any = scaled
) -> tuple[Region, GraphedCall]:
    region = Region(captured(function, torch.ones(3), torch.ones(3)), "eager")
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


def test_a_call_that_returns_an_input_is_not_replayed():
    """Whoever writes to the result means the input, which a copy of a buffer is not."""
    region, graphed = graphed_call(CpuRecorder(), function=scaled_and_handed_on)
    told: list[Any] = []
    x = torch.full((3,), 2.0)
    for _ in range(2):
        product, same = graphed(region, (x, torch.ones(3)), told.append)
        assert product.sum() == 6
        assert same.data_ptr() == x.data_ptr()
    assert [why.detail for why in told] == ["it returns one of its inputs"] * 2
