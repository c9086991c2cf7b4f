"""Replays a compiled scale step from a recorded CUDA graph: one launch instead of one per kernel.

A recording reads and writes fixed addresses. Weights and caches are *held*: their addresses are part of what
a recording is found by. Everything else is *copied* into buffers that all recordings of a program share, and
what a recording returns is copied out, so that nobody sees memory that a later replay overwrites. Recordings
share one memory pool: only one of them runs at a time, and nothing in it outlives its replay.

A replay writes to caches behind torch's back; their version counters, by which everybody tells that a tensor
was written, are advanced for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .._torch_private import clone_all
from ..analysis.reasons import Fallback, Reason
from ..analysis.repeatable import obstacle_to_repeating
from ..errors import GraphError
from ..lowering.region import Region
from ..ops.streamed_product import weights_stay
from .buffers import Buffers
from .recorded_inputs import Found, Inputs, taking

# A model whose caches or weights keep moving would record for ever.
_MOST_RECORDINGS = 4

Call = Callable[..., Sequence[Any]]
# The values of a region's size symbols: in one order, so that nobody has to hash the symbols.
_Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Recording:
    """A recorded call: `replay` runs it on the memory that it was recorded with."""

    replay: Callable[[], None]
    outputs: tuple[Any, ...]


class Recorder(Protocol):
    """How a device records calls."""

    def accepts(self, tensor: Tensor) -> bool:
        """Whether a recording may read the tensor."""

    def warm(self, call: Call, arguments: Sequence[Any]) -> Sequence[Any]:
        """Run a call in such a way that a recording of it may follow."""

    def record(self, call: Call, arguments: Sequence[Any]) -> Recording:
        """Record a call.

        Raises:
            RuntimeError: it does something that cannot be recorded, such as waiting for the device.
        """

    def in_order(self) -> AbstractContextManager[None]:
        """Run after whatever ran in here before, on any stream."""


@dataclass
class GraphMemory:
    """What the recordings of one program share.

    Attributes:
        recorder: of the device.
        required: raise where a call cannot be recorded.
        buffers: copies of the inputs.
        lock: held while a recording is made or replayed.
    """

    recorder: Recorder
    required: bool
    buffers: Buffers = field(default_factory=Buffers)
    lock: threading.RLock = field(default_factory=threading.RLock)


class GraphedCall:
    """One region, called through recordings.

    Args:
        region: its graph says which inputs are written, and reads the sizes.
        memory: shared with the other regions of the program.
        without: how many of the region's last inputs are not passed; no size is read off them alone.
        more: names of what is passed in their place.
        shared: the first arguments, if others ask for them too; those that the graph writes are held.
    """

    def __init__(
        self,
        region: Region,
        memory: GraphMemory,
        without: int = 0,
        more: Sequence[str] = (),
        shared: Inputs | None = None,
    ) -> None:
        self._region, self._memory = region, memory
        names = [str(node.target) for node in region.graph.graph.nodes if node.op == "placeholder"]
        names = [*names[: len(names) - without], *more]
        self._first = Inputs(names, region.written) if shared is None else shared
        self._others = Inputs(names[self._first.end :], start=self._first.end)
        self._sizes = region.size_reader.values
        self._recordings: dict[_Numbers, dict[tuple[tuple[int, ...], ...], Recording]] = {}
        self._written = taking(sorted(region.written))
        self._refused: dict[_Numbers, Fallback] = {}
        # A call runs several times before its recording serves it for the first time.
        self._unrepeatable = obstacle_to_repeating(region.graph.graph)

    def __call__(
        self,
        call: Call,
        arguments: Sequence[Any],
        note: Callable[[Fallback], None],
        unrecorded: Call | None = None,
        staged: Found | None = None,
    ) -> tuple[Any, ...]:
        """Call `call(*arguments)`, or `unrecorded` where there can be no recording, which `note` is told.

        Args:
            call: what is recorded.
            arguments: of it.
            note: told why there is no recording.
            unrecorded: called instead of `call` where there is none.
            staged: what `shared` found for these arguments, if it was asked before.

        Raises:
            GraphError: it could not be recorded, and a recording is required.
        """
        sizes = self._sizes(tuple(arguments))
        with self._memory.lock:
            if sizes not in self._refused:
                with self._memory.recorder.in_order():
                    found = self._replayed(call, arguments, sizes, staged)
                if found is not None:
                    return found
        why = self._refused[sizes]
        if self._memory.required:
            raise GraphError(str(why))
        note(why)
        return tuple((unrecorded or call)(*arguments))

    def _replayed(
        self, call: Call, arguments: Sequence[Any], sizes: _Numbers, staged: Found | None
    ) -> tuple[Any, ...] | None:
        memory = self._memory.buffers
        if staged is None or staged.inputs is not self._first or staged.fills != memory.fills:
            staged = self._first.find(arguments, memory)
        others = self._others.find(arguments, memory)
        found_by = staged.addresses, others.addresses
        recordings = self._recordings.setdefault(sizes, {})
        recording = recordings.get(found_by)
        if recording is None:
            why = self._obstacle(arguments)
            if len(recordings) >= _MOST_RECORDINGS:
                why = f"weights, caches or layouts changed after each of {_MOST_RECORDINGS} recordings"
            if why:
                self._refuse(sizes, why)
                return None
        # An idle device waits for the replay: what the buffers hold now is noted behind it.
        with memory.filled([*staged.stale, *others.stale]):
            if recording is None:
                fixed = list(arguments)
                for found in (staged, others):
                    for at, buffer in zip(found.inputs.copied, found.buffers, strict=True):
                        fixed[at] = buffer
                recording = self._record(call, fixed, sizes)
                if recording is None:
                    return None
                recordings[found_by] = recording
            recording.replay()
        torch.autograd.graph.increment_version(self._written(arguments))
        return clone_all(recording.outputs)

    def _obstacle(self, arguments: Sequence[Any]) -> str:
        """Why these inputs cannot be recorded with, or ""."""
        if self._unrepeatable:
            return self._unrepeatable
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        copied = [arguments[at] for inputs in (self._first, self._others) for at in inputs.copied]
        for value in tensors:
            if not self._memory.recorder.accepts(value):
                return f"an input is on {value.device}"
        if any(isinstance(value, nn.Parameter) for value in self._written(arguments)):
            return "it writes to a parameter, which kernels may have read ahead"
        written = {value.untyped_storage().data_ptr() for value in self._written(arguments)}
        for value in copied:
            if _overlaps_itself(value):
                return "an input is a view whose elements share memory"
            if value.untyped_storage().data_ptr() in written:
                return "an input shares memory with one that is written"
        if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
            return "gradients are wanted, of which a replay records nothing"
        return ""

    def _record(self, call: Call, fixed: Sequence[Any], sizes: _Numbers) -> Recording | None:
        recorder = self._memory.recorder
        recorder.warm(call, fixed)
        try:
            with weights_stay():
                recording = recorder.record(call, fixed)
        except RuntimeError as error:
            self._refuse(sizes, str(error).partition("\n")[0])
            return None
        own = {value.untyped_storage().data_ptr() for value in fixed if isinstance(value, Tensor)}
        for value in recording.outputs:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in own:
                self._refuse(sizes, "it returns one of its inputs")
                return None
        return recording

    def _refuse(self, sizes: _Numbers, detail: str) -> None:
        self._refused[sizes] = Fallback(Reason.NOT_CAPTURED, detail=detail)


def _overlaps_itself(x: Tensor) -> bool:
    """Whether several elements may lie at one address, as in an expanded view."""
    reach = 0
    for step, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and step <= reach:
            return True
        reach += step * (size - 1)
    return False
