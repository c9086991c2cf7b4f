"""The program of a graph that stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._torch_private import compile_id
from .analysis.reasons import Fallback
from .lowering.region import Region
from .options import Options
from .passes.step import PassRecord
from .recording import note_called
from .runtime.cuda_graphs import GraphedCall
from .runtime.cuda_recorder import graph_memory
from .runtime.generation import current_generation
from .runtime.short_caches import refuse_short_caches


class DenseProgram:
    """A graph that stays as it is.

    Attributes:
        records, options, compile_id: as for `StepProgram`.
        one_token: whether that is because there is nothing to prune in it.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        region: Region,
        records: list[PassRecord],
        options: Options,
        fallbacks: list[Fallback],
        one_token: bool,
    ) -> None:
        self.records, self.options, self.one_token = records, options, one_token
        self.compile_id = compile_id()
        self._call, self._region, self._fallbacks = call, region, fallbacks
        devices = {spec.device for spec in region.specs if spec.device is not None}
        memory = graph_memory(options, devices.pop()) if len(devices) == 1 else None
        self._graphed = None if memory is None else GraphedCall(region, memory)

    def __call__(self, *arguments: Any) -> Any:
        """Run the graph and leave its reasons with the generation."""
        note_called(self)
        running = current_generation()
        if running is not None:
            controller = running.controller(self.options, 0)
            others = [each.caches for each in running.controllers]
            refuse_short_caches(controller.caches, others, {}, arguments)
            controller.enter()
            controller.ledger.other.append((running.scale, self._region, self._region.sizes(arguments)))
            if not self.one_token:
                controller.ledger.fallbacks.extend(self._fallbacks)
        if self._graphed is None:
            return self._call(*arguments)

        def note(why: Fallback) -> None:
            if running is not None:
                running.controller(self.options, 0).ledger.note(running.scale, why)

        return self._graphed(self._call, arguments, note)

    @property
    def regions(self) -> list[Region]:
        """The one graph."""
        return [self._region]
