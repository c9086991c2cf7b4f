"""The two model families of the proofs behind one interface, and generations driven by hand."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from toprovar_fx.backend import toprovar
from toprovar_fx.models.cache import KVCache
from toprovar_fx.models.cache_memory import CacheSizes
from toprovar_fx.models.configs import InfinityConfig
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.models.text import TextContext
from toprovar_fx.options import Options
from toprovar_fx.passes.step import Step
from toprovar_fx.runtime.controller import Controller
from toprovar_fx.runtime.generation import Generation, generation
from toprovar_fx.schedules import Schedule

from .lasting import own_forward
from .prenorm import Cache, PreNorm

SQUARE = Schedule(tuple((side, side) for side in (1, 2, 3, 4, 6, 8)))
WIDE = Schedule(((1, 1), (2, 3), (3, 4), (4, 7), (5, 9)))
CONFIG = InfinityConfig(
    depth=4,
    width=64,
    heads=2,
    bits=4,
    text_channels=16,
    text_maxlen=8,
    block_chunks=1,
    text_pool_heads=2,
    rope_grid=8,
    text_multiple=8,
)
# Every layer but the first may be pruned.
OPEN = {"preset": "criterion", "protected_layers_first": 1, "protected_layers_last": 0}
# Four pruned scales in a row, other counts in every layer; layer 3 is skipped once.
MANY = {2: 0.5, 3: {1: 0.25, 2: 0.75, 3: 0.5}, 4: {1: 0.5, 2: 0.1, 3: 0.0}, 5: {1: 0.3, 2: 0.6, 3: 0.2}}
# Variants of a model share a code object, and with it Dynamo's limit; after a hit they would run eagerly.
_LIMITS = {"fail_on_recompile_limit_hit": True, "recompile_limit": 256}
MANY_GRAPHS = torch._dynamo.config.patch(**_LIMITS)


@dataclass
class State:
    """What one generation carries from scale to scale: the text (Infinity) and the cache."""

    cache: Any
    context: TextContext | None = None

    @property
    def keys(self) -> list[Tensor]:
        return self.cache.keys

    @property
    def values(self) -> list[Tensor]:
        return self.cache.values


class Lists:
    """A cache: keys and values per layer."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values


class Subject(ABC):
    """A model under test; its batch rows are [conditional B, unconditional B]."""

    name: str
    width: int
    layers: int
    model: nn.Module

    @abstractmethod
    def state(self, images: int, schedule: Schedule) -> State:
        """Text and an empty cache."""

    @abstractmethod
    def arguments(self, hidden: Tensor, state: State, end: int) -> tuple[Any, ...]:
        """Arguments of one scale step."""

    def use(self, schedule: Schedule) -> None:  # noqa: B027 - most models have no table per schedule
        """Prepare the position table."""

    @property
    def parameter(self) -> Tensor:
        return next(self.model.parameters())

    def hidden(self, images: int, scale: int, schedule: Schedule, seed: int = 1) -> Tensor:
        """The input of a scale, [2B, L, C], a function of seed and scale alone."""
        source = torch.Generator().manual_seed(1000 * seed + scale)
        tokens = torch.randn(2 * images, schedule.tokens[scale], self.width, generator=source)
        return tokens.to(self.parameter)

    def under(self, options: Mapping[str, object], **dynamo: Any) -> Callable[..., Any]:
        """As `torch.compile` of the model with options of the backend; one trace serves all of them."""
        known: dict[object, Traced] = vars(self).setdefault("known_traces", {})
        how = tuple(sorted(dynamo.items()))
        if how not in known:
            known[how] = Traced(self, dynamo={"fullgraph": False, **dynamo})
        forward = known[how].under(options)
        # Its programs live as long as the subject, as those in Dynamo's cache would.
        vars(self).setdefault("known_forwards", []).append(forward)
        return forward


class TinyInfinity(Subject):
    """Infinity with every parameter far from its initial near-zero gates, so that every layer matters."""

    def __init__(self, depth: int = 4, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.name = "infinity"
        config = InfinityConfig(**{**vars(CONFIG), "depth": depth})
        torch.manual_seed(0)
        model = Infinity(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for block in model.blocks():
                block.ada_gss.add_(0.5 * torch.randn_like(block.ada_gss))
        self.model = model.to(device, dtype)
        self.width, self.layers = config.width, depth

    def use(self, schedule: Schedule) -> None:
        self.model.set_schedule(schedule)

    def state(self, images: int, schedule: Schedule) -> State:
        source = torch.Generator().manual_seed(7)
        config, like = self.model.config, self.parameter
        text = torch.randn(2 * images, config.text_maxlen, config.text_channels, generator=source).to(like)
        lengths = torch.tensor([5 + row % 4 for row in range(2 * images)], device=like.device)
        cache = KVCache(CacheSizes.of(config, 2 * images, schedule.ends[-1], like.dtype), like.device)
        return State(cache, self.model.prepare_text(text, lengths))

    def arguments(self, hidden: Tensor, state: State, end: int) -> tuple[Any, ...]:
        return hidden, state.context, state.cache, end


class TinyPreNorm(Subject):
    """A layout that the package does not contain."""

    def __init__(
        self, fused: bool, rope: bool, depth: int = 4, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.name = f"prenorm-{'fused' if fused else 'separate'}-{'rope' if rope else 'absolute'}"
        torch.manual_seed(0)
        self.model = PreNorm(depth=depth, fused=fused, rope=rope).eval().to(device, dtype)
        self.width, self.layers = self.model.width, depth

    def state(self, images: int, schedule: Schedule) -> State:
        like = self.parameter
        empty = self.model.new_cache(2 * images, schedule.ends[-1])
        return State(Cache([k.to(like) for k in empty.keys], [v.to(like) for v in empty.values]))

    def arguments(self, hidden: Tensor, state: State, end: int) -> tuple[Any, ...]:
        return hidden, state.cache, end


BUILDERS: Mapping[str, Callable[..., Subject]] = {
    "infinity": TinyInfinity,
    "prenorm-fused-rope": lambda **given: TinyPreNorm(True, True, **given),
    "prenorm-fused-absolute": lambda **given: TinyPreNorm(True, False, **given),
    "prenorm-separate-rope": lambda **given: TinyPreNorm(False, True, **given),
    "prenorm-separate-absolute": lambda **given: TinyPreNorm(False, False, **given),
}


@dataclass
class Outcome:
    """One generation: logits per scale that ran, the generation and its state."""

    logits: list[Tensor]
    run: Generation
    state: State

    @property
    def controller(self) -> Controller:
        (found,) = self.run.controllers
        return found

    @property
    def keeps(self) -> dict[tuple[int, int], Tensor]:
        """Keep sets by (scale, layer); a skipped layer has an empty one."""
        ledger = self.controller.ledger
        empty = torch.zeros(len(self.logits[0]), 0, dtype=torch.int64, device=self.logits[0].device)
        return ledger.keep_sets | {(r.scale, r.layer): empty for r in ledger.runs if r.arm == "skipped"}

    def arms(self, scale: int) -> list[str]:
        """What ran in every layer of a scale."""
        return [run.arm for run in self.controller.ledger.runs if run.scale == scale]

    def counts(self, scale: int) -> list[int]:
        """K of every layer of a scale."""
        return [run.kept for run in self.controller.ledger.runs if run.scale == scale]


def generate(
    subject: Subject,
    forward: Callable[..., Tensor],
    images: int = 1,
    schedule: Schedule = SQUARE,
    seed: int = 1,
    fail_at: int | None = None,
) -> Outcome:
    """Run all scales under an open generation; `fail_at` raises before that scale."""
    subject.use(schedule)
    logits = []
    with torch.inference_mode(), generation(schedule, images) as run:
        state = subject.state(images, schedule)
        for scale in range(len(schedule)):
            if not run.begin_scale(scale):
                break
            if scale == fail_at:
                raise KeyboardInterrupt
            hidden = subject.hidden(images, scale, schedule, seed)
            logits.append(forward(*subject.arguments(hidden, state, schedule.ends[scale])))
    return Outcome(logits, run, state)


def worst(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Largest deviation over all scales; infinite if the number of scales differs."""
    if len(left) != len(right):
        return float("inf")
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(left, right, strict=True))


def identical(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Equal bit for bit."""
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


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
        with torch._dynamo.config.patch(**_LIMITS):  # torch 2.11 enters one patch once
            return generate(self.subject, compiled, **given)

    def through(self, backend: Callable[..., Any]) -> Callable[..., Any]:
        """As `torch.compile` of the model with this backend, from the trace that there is. One thread's."""
        made: dict[int, Callable[..., Any]] = {}

        def forward(*arguments: Any) -> Any:
            self.other = backend, made
            try:
                with torch._dynamo.config.patch(**_LIMITS):
                    return self.compiled(*arguments)
            finally:
                self.other = None

        return forward

    def under(self, options: Mapping[str, object]) -> Callable[..., Any]:
        """As `torch.compile` of the model with these options of the backend and programs of its own."""
        return self.through(partial(toprovar, options=options))


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
