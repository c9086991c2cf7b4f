"""One call through recordings: what is copied, what is held, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toprovar_fx.errors import GraphError
from toprovar_fx.lowering.region import Region
from toprovar_fx.ops.streamed_product import WEIGHTS_STAY
from toprovar_fx.runtime.cuda_graphs import GraphedCall, GraphMemory
from toprovar_fx.runtime.cuda_recorder import CudaRecorder

from .captured import captured, writes_its_cache
from .models.recorders import CpuRecorder


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


def test_a_step_that_writes_to_a_parameter_is_refused():
    region = Region(captured(writes_its_cache, torch.zeros(2, 3), torch.ones(2, 2)), "eager")
    graphed = GraphedCall(region, GraphMemory(recorder := CpuRecorder(), False))
    told: list[Any] = []
    weight = nn.Parameter(torch.zeros(2, 3), requires_grad=False)
    graphed(region, (weight, torch.ones(2, 2)), told.append)
    assert weight[0, 0] == 1 and not recorder.records
    assert [why.detail for why in told] == ["it writes to a parameter, which kernels may have read ahead"]


def test_weights_stay_while_a_call_is_recorded():
    seen = []

    class Noting(CpuRecorder):
        def record(self, call: Any, arguments: Any) -> Any:
            seen.append(WEIGHTS_STAY.get())
            return super().record(call, arguments)

        def warm(self, call: Any, arguments: Any) -> Any:
            seen.append(WEIGHTS_STAY.get())
            return super().warm(call, arguments)

    region, graphed = graphed_call(Noting())
    graphed(region, (torch.ones(3), torch.ones(3)), print)
    assert seen == [False, True] and not WEIGHTS_STAY.get()


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
        patched.setattr("toprovar_fx.runtime.buffers.copy_all", _out_of_memory)
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
