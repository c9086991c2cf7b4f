"""A function of tensors that a device records once per shape and replays: one launch instead of dozens."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from .._torch_private import clone_all
from .cuda_graphs import GraphMemory, Recording
from .cuda_recorder import CudaRecorder

# More shapes and constants than this run without a recording.
_MOST_RECORDINGS = 64


def memory_of(device: torch.device) -> GraphMemory | None:
    """What recordings on a device need, or None where there is nothing to record with."""
    return GraphMemory(CudaRecorder(device), required=False) if device.type == "cuda" else None


class RecordedFunction:
    """Calls `function(**tensors, **constants)`, which returns tensors of its own and else reads what is held.

    Args:
        function: takes tensors and hashable constants by name; what else it depends on has to be among the
            constants.
        memory: see `memory_of`; without it the function is called as it is.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], memory: GraphMemory | None) -> None:
        self._function, self._memory = function, memory
        self._recordings: dict[Hashable, Recording | None] = {}

    def __call__(
        self, tensors: Mapping[str, Tensor], held: Sequence[Tensor] = (), **constants: Hashable
    ) -> tuple[Tensor, ...]:
        """The function's results, in memory that no later call writes to.

        Args:
            tensors: are copied to where the recording reads them.
            held: what the function reads besides, such as weights; where it moves, another recording is made.
            constants: as for the class.
        """
        memory = self._memory
        if memory is None or not all(map(memory.recorder.accepts, (*tensors.values(), *held))):
            return self._function(**tensors, **constants)
        with memory.lock, memory.recorder.in_order():
            return self._replayed(memory, tensors, held, constants)

    def _replayed(
        self,
        memory: GraphMemory,
        tensors: Mapping[str, Tensor],
        held: Sequence[Tensor],
        constants: Mapping[str, Hashable],
    ) -> tuple[Tensor, ...]:
        buffers, stale = memory.buffers.find(list(tensors), list(tensors.values()))
        addresses = tuple(tensor.data_ptr() for tensor in (*buffers, *held))
        layouts = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in held)
        place = addresses, layouts, tuple(constants.items())
        memory.buffers.fill(stale)
        if place not in self._recordings and len(self._recordings) < _MOST_RECORDINGS:
            self._recordings[place] = self._record(
                memory, dict(zip(tensors, buffers, strict=True)), constants
            )
        recording = self._recordings.get(place)
        if recording is None:
            return self._function(**tensors, **constants)
        recording.replay()
        return clone_all(recording.outputs)

    def _record(
        self, memory: GraphMemory, fixed: Mapping[str, Tensor], constants: Mapping[str, Hashable]
    ) -> Recording | None:
        def call(*arguments: Tensor) -> tuple[Tensor, ...]:
            return self._function(**dict(zip(fixed, arguments, strict=True)), **constants)

        arguments = list(fixed.values())
        memory.recorder.warm(call, arguments)
        try:
            return memory.recorder.record(call, arguments)
        except RuntimeError:
            return None
