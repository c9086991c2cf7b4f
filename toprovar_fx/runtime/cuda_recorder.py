"""Records calls as CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import GraphError
from ..one_capture import CAPTURE
from ..options import Options
from .cuda_graphs import Call, GraphMemory, Recording

# CUDA's name of the stream that nobody creates or destroys.
_DEFAULT_STREAM = 0


class CudaRecorder:
    """Recorder of one CUDA device, with one memory pool for all its recordings.

    Args:
        device: the device of all tensors; the current one without an index.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(self._device)
        # The stream of the last replay, and an event behind it unless that is the default stream.
        self._last: tuple[torch.cuda.Stream, torch.cuda.Event | None] | None = None
        self._failed: list[torch.cuda.CUDAGraph] = []

    def accepts(self, tensor: Tensor) -> bool:
        """Whether the tensor is on the device."""
        return tensor.device == self._device

    def warm(self, call: Call, arguments: Sequence[Any]) -> Sequence[Any]:
        """Run a call on the recording's stream: libraries set themselves up, and kernels are compiled."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with CAPTURE, torch.cuda.stream(self._stream):
                return call(*arguments)
        finally:
            current.wait_stream(self._stream)

    def record(self, call: Call, arguments: Sequence[Any]) -> Recording:
        """Record a call that was warmed."""
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                CAPTURE,
                torch.cuda.device(self._device),
                # Where a recording fails, torch leaves the thread on the recording's stream.
                torch.cuda.stream(torch.cuda.current_stream(self._device)),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                outputs = tuple(call(*arguments))
        except BaseException:
            # The allocator may take the pool for one that is still recorded into, and ask the graph about it.
            self._failed.append(graph)
            self._pool = torch.cuda.graph_pool_handle()
            raise
        return Recording(graph.replay, outputs)

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Wait on the device for the last replay, if it was enqueued to another stream.

        The default stream is always there, so it can be waited for later; another may be gone by then, and
        its event has to be recorded now. An event costs the host as much as a small kernel.
        """
        stream = torch.cuda.current_stream(self._device)
        if self._last is not None and self._last[0] != stream:
            last, event = self._last
            stream.wait_stream(last) if event is None else stream.wait_event(event)
        try:
            yield
        finally:
            lasts = stream.cuda_stream == _DEFAULT_STREAM
            self._last = stream, None if lasts else stream.record_event()


def graph_memory(options: Options, device: torch.device | None) -> GraphMemory | None:
    """What the recordings of a program share; None where the options or the device want none.

    Raises:
        GraphError: recordings are required, and the device has none.
    """
    if options.cuda_graphs is False or device is None:
        return None
    if device.type != "cuda":
        if options.cuda_graphs is True:
            raise GraphError(f"cuda_graphs=True: expected a CUDA device, not {device}")
        return None
    return GraphMemory(CudaRecorder(device), required=options.cuda_graphs is True)
