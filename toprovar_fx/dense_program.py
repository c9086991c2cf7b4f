"""The program of a graph that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ._torch_private import compile_id
from .analysis.reasons import Fallback
from .lowering.region import Region
from .options import Options
from .passes.step import PassRecord
from .recording import WATCHING, note_called
from .runtime.cuda_graphs import GraphedCall, GraphMemory
from .runtime.cuda_recorder import graph_memory
from .runtime.dense_calls import DenseCalls
from .runtime.generation import RUNNING, Generation


def dense_memory(region: Region, options: Options, one_token: bool) -> GraphMemory | None:
    """Where the calls of a graph are recorded; None where they are not.

    What is no part of a generation's steps, `unit="auto"` leaves as it is.
    """
    devices = {spec.device for spec in region.specs if spec.device is not None}
    if len(devices) != 1 or not options.runs_steps(suited=one_token):
        return None
    return graph_memory(options, devices.pop())


class DenseProgram:
    """A graph that stays as it is.

    Attributes:
        records, options, compile_id: as for `StepProgram`.
        one_token: whether that is because there is nothing to prune in it.
        call: what runs the graph.
        parts: what `call` consists of, where that is not one compiled function.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        region: Region,
        records: list[PassRecord],
        options: Options,
        fallbacks: list[Fallback],
        one_token: bool,
        memory: GraphMemory | None = None,
        parts: Sequence[Region] = (),
    ) -> None:
        self.records, self.options, self.one_token = records, options, one_token
        self.compile_id = compile_id()
        self.call, self._region, self._fallbacks, self._parts = call, region, fallbacks, parts
        self._graphed = None if memory is None else GraphedCall(region, memory)
        self._sizes = region.size_reader.values

    def __call__(self, *arguments: Any) -> Any:
        """Run the graph and leave its reasons with the generation."""
        # In one Python frame: beside a graph of 50 us every further one is seen.
        if WATCHING.get() is not None:
            note_called(self)
        running = RUNNING.get()
        refusable = running is not None and bool(running.short_caches)
        if running is not None and refusable:
            self._calls(running).note(arguments, self._sizes(arguments))
        if self._graphed is None:
            results = self.call(*arguments)
        else:
            results = self._graphed(self.call, arguments, partial(self._note, running))
        # A call that nothing can refuse is counted behind it: the card may be idle.
        if running is not None and not refusable:
            calls = running.dense_calls.get(self._region) or self._calls(running)
            tally, sizes = calls.latest, self._sizes(arguments)
            if tally.scale == running.scale and tally.sizes == sizes:
                tally.calls += 1
            else:
                calls.note(arguments, sizes)
        return results

    def _calls(self, running: Generation) -> DenseCalls:
        found = running.dense_calls.get(self._region)
        if found is None:
            fallbacks = [] if self.one_token else self._fallbacks
            found = DenseCalls(running, running.controller(self.options, 0), self._region, fallbacks)
            running.dense_calls[self._region] = found
        return found

    def _note(self, running: Generation | None, why: Fallback) -> None:
        if running is not None:
            running.controller(self.options, 0).ledger.note(running.scale, why)

    @property
    def regions(self) -> list[Region]:
        """The whole graph, then the parts that run in its place."""
        return [self._region, *self._parts]
