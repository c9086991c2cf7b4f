"""The two model families of the proofs behind one interface, and generations driven by hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toprovar_fx.models.cache import KVCache
from toprovar_fx.models.cache_memory import CacheSizes
from toprovar_fx.models.configs import InfinityConfig
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.models.text import TextContext
from toprovar_fx.runtime.controller import Controller
from toprovar_fx.runtime.generation import Generation, generation
from toprovar_fx.schedules import Schedule

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
LIMITS = {"fail_on_recompile_limit_hit": True, "recompile_limit": 256}
MANY_GRAPHS = torch._dynamo.config.patch(**LIMITS)


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
