"""A recorder for tests without a device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from toprovar_fx.runtime.cuda_graphs import Recording


class CpuRecorder:
    """Replays a call on the very tensors that it was recorded with, into the results of then.

    As on a device, no version counter tells what a replay wrote.
    """

    def __init__(self, fails: str | None = None) -> None:
        self.fails, self.records, self.replays = fails, 0, 0

    def accepts(self, tensor: Tensor) -> bool:
        return tensor.device.type == "cpu"

    def warm(self, call: Any, arguments: Sequence[Any]) -> Sequence[Any]:
        return call(*arguments)

    def record(self, call: Any, arguments: Sequence[Any]) -> Recording:
        if self.fails:
            raise RuntimeError(self.fails)
        self.records += 1
        outputs = tuple(call(*arguments))
        unseen = [value.data if isinstance(value, Tensor) else value for value in arguments]

        def replay() -> None:
            self.replays += 1
            # Other recordings use the pool between two replays.
            kept = [value.clone().fill_(7) if isinstance(value, Tensor) else value for value in outputs]
            for old, junk in zip(outputs, kept, strict=True):
                old.copy_(junk)
            for old, new in zip(outputs, call(*unseen), strict=True):
                old.copy_(new)

        return Recording(replay, outputs)

    @contextmanager
    def in_order(self) -> Any:
        yield
