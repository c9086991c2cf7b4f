"""A model of the proofs that is traced once and runs under any options, and what its blocks are given."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from toprovar_fx.backend import toprovar
from toprovar_fx.options import Options
from toprovar_fx.passes.step import Step

from .lasting import own_forward
from .subjects import LIMITS, Outcome, Subject, generate


@dataclass
class Traced:
    """A model that Dynamo traced once, to be run under any options: rewriting starts anew for each.

    Through Inductor it is traced anew as well: what Inductor assumes about sizes is for Dynamo to guard.
    `program` may be set to run something else than the backend's program (the step with recorders in it).
    `dynamo` holds arguments of `torch.compile`.
    """

    subject: Subject
    options: Mapping[str, object] = field(default_factory=dict)
    dynamo: Mapping[str, Any] = field(default_factory=dict)
    graphs: list[fx.GraphModule] = field(default_factory=list)
    program: Callable[..., Any] | None = None
    programs: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.forward = own_forward(self.subject.model)
        self.compiled = self._compile(self.forward, self._backend)
        # What `through` compiles with, and what that made so far.
        self.other: tuple[Callable[..., Any], dict[int, Callable[..., Any]]] | None = None

    def _compile(self, forward: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(forward, backend=backend, **{"fullgraph": True, **self.dynamo})

    def _at_once(self, gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        return toprovar(gm, example_inputs, options=self.options)

    def _backend(self, gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.graphs.append(gm)
        at = len(self.graphs)

        def run(*arguments: Any) -> Any:
            if self.other is not None:
                backend, made = self.other
                if at not in made:
                    made[at] = backend(gm, example_inputs)
                return made[at](*arguments)
            if self.program is not None and gm.code == self.dynamic.code:
                return self.program(*arguments)
            key = at, Options.parse(self.options)
            if key not in self.programs:
                self.programs[key] = toprovar(gm, example_inputs, options=key[1])
            return self.programs[key](*arguments)

        return run

    @property
    def dynamic(self) -> fx.GraphModule:
        """The graph of all scales but the first, for the batch that was traced first."""
        return self.graphs[1]

    def __call__(self, options: Mapping[str, object] | None = None, **given: Any) -> Outcome:
        """One generation under `options` (eager lowering)."""
        self.options = {"lowering": "eager", "preset": "criterion", **(options or {})}
        compiled = self.compiled
        if self.options["lowering"] != "eager":
            compiled = self._compile(own_forward(self.subject.model), self._at_once)
        with torch._dynamo.config.patch(**LIMITS):  # torch 2.11 enters one patch once
            return generate(self.subject, compiled, **given)

    def through(self, backend: Callable[..., Any]) -> Callable[..., Any]:
        """As `torch.compile` of the model with this backend, from the trace that there is. One thread's."""
        made: dict[int, Callable[..., Any]] = {}

        def forward(*arguments: Any) -> Any:
            self.other = backend, made
            try:
                with torch._dynamo.config.patch(**LIMITS):
                    return self.compiled(*arguments)
            finally:
                self.other = None

        return forward

    def under(self, options: Mapping[str, object]) -> Callable[..., Any]:
        """As `torch.compile` of the model with these options of the backend and programs of its own."""
        return self.through(partial(toprovar, options=options))


def under(subject: Subject, options: Mapping[str, object], **dynamo: Any) -> Callable[..., Any]:
    """As `torch.compile` of a model with options of the backend; one trace of it serves all of them."""
    known: dict[object, Traced] = vars(subject).setdefault("known_traces", {})
    how = tuple(sorted(dynamo.items()))
    if how not in known:
        known[how] = Traced(subject, dynamo={"fullgraph": False, **dynamo})
    forward = known[how].under(options)
    # Its programs live as long as the subject, as those in Dynamo's cache would.
    vars(subject).setdefault("known_forwards", []).append(forward)
    return forward


class Recorder(nn.Module):
    """Runs a block and keeps its inputs as they were before (caches are written in place)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.inputs: list[tuple[Any, ...]] = []

    def forward(self, *inputs: Any) -> Tensor:
        self.inputs.append(tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs))
        return self.block(*inputs)


def record_inputs(traced: Traced, step: Step) -> dict[int, Recorder]:
    """Run a dense generation on the outlined step and return what every layer was given, by scale."""
    recorders = {site.layer: Recorder(step.module(site)) for site in step.sites}
    recording = step.with_modules({site.name: recorders[site.layer] for site in step.sites})
    traced.program = recording.graph
    try:
        with warnings.catch_warnings():
            # The backend's own program does not run, and the generation says so.
            warnings.simplefilter("ignore", RuntimeWarning)
            traced({"preset": "lossless"})
    finally:
        traced.program = None
    return recorders
