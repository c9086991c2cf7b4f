"""What the recorder of CUDA graphs leaves behind where a recording fails; with a device that is pretended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from toprovar_fx.models.cuda_pages import CudaPages
from toprovar_fx.runtime.cuda_recorder import CudaRecorder

FAILS = "operation failed due to a previous error during capture"


class Device:
    """A current stream, and `torch.cuda.graph` as torch wrote it: an error leaves its own stream current."""

    def __init__(self) -> None:
        self.current: Any = self.stream()
        self.pools = 0
        self.used: list[int] = []
        self.capturing = 0
        self.most = 0

    def stream(self, *_: object, name: int = 7) -> Any:
        events = SimpleNamespace(wait_stream=lambda other: None, wait_event=lambda event: None)
        events.record_event, events.cuda_stream = object, name
        return events

    def pool(self) -> int:
        self.pools += 1
        return self.pools

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, pool: int, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert pool not in self.used, "a pool is used that was left recording"
        self.current = stream
        self.capturing += 1
        self.most = max(self.most, self.capturing)
        try:
            yield
        except RuntimeError:
            self.used.append(pool)
            raise RuntimeError(FAILS) from None
        finally:
            self.capturing -= 1


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    given = {
        "current_device": lambda: 1,
        "current_stream": lambda *_: made.current,
        "device": lambda *_: made.on(made.current),
        "graph": made.graph,
        "graph_pool_handle": made.pool,
        "stream": made.on,
        "Stream": made.stream,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
    }
    for name, value in given.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def failing() -> None:
    raise RuntimeError("waits for the device")


def test_a_recording_that_fails_leaves_the_stream_and_no_pool_in_use(device: Device) -> None:
    recorder, stream = CudaRecorder(torch.device("cuda")), device.current
    with pytest.raises(RuntimeError, match=FAILS):
        recorder.record(failing, ())
    assert device.current is stream
    recorder.record(lambda: (1,), ())
    assert device.pools == 2


def test_the_current_device_is_meant_where_none_is_named(device: Device) -> None:
    recorder = CudaRecorder(torch.device("cuda"))
    assert recorder.accepts(SimpleNamespace(device=torch.device("cuda", 1)))  # type: ignore[arg-type]
    assert not recorder.accepts(SimpleNamespace(device=torch.device("cuda", 0)))  # type: ignore[arg-type]


def test_one_thread_records_at_a_time_and_nobody_waits_for_the_device_meanwhile(device: Device) -> None:
    recorders = [CudaRecorder(torch.device("cuda")) for _ in range(2)]
    inside, waited = threading.Barrier(2, timeout=0.2), []
    pages = object.__new__(CudaPages)

    def call() -> tuple[int]:
        with pytest.raises(threading.BrokenBarrierError):
            inside.wait()
        asked = threading.Thread(target=lambda: waited.append(pages.wait()))
        asked.start()
        asked.join()
        return (1,)

    threads = [threading.Thread(target=recorder.record, args=(call, ())) for recorder in recorders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device.most == 1
    assert waited == [False, False]


def test_work_before_an_error_is_waited_for(device: Device) -> None:
    recorder = CudaRecorder(torch.device("cuda"))
    with pytest.raises(KeyboardInterrupt), recorder.in_order():
        raise KeyboardInterrupt
    waited: list[object] = []
    device.current = device.stream()
    device.current.wait_event = waited.append
    with recorder.in_order():
        pass
    assert len(waited) == 1


def test_one_stream_waits_for_nothing_and_another_for_the_default_stream(device: Device) -> None:
    recorder = CudaRecorder(torch.device("cuda"))
    default = device.current = device.stream(name=0)
    default.record_event = default.wait_event = default.wait_stream = None  # would fail if they were called
    for _ in range(2):
        with recorder.in_order():
            pass
    waited: list[object] = []
    device.current = device.stream()
    device.current.wait_stream = waited.append
    with recorder.in_order():
        pass
    assert waited == [default]
