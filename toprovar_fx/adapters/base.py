"""What all adapters share: the blocks of one scale as one compiled step, run from inside upstream's own loop.

Upstream's generation method stays upstream's. Its loop calls the blocks one by one; the first of them is made
to run the whole step, the others to hand on what they get. So embedding, guidance, sampling, codes and
decoding are upstream's code, and one compiled function runs per scale.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..options import Options
from ..runtime.generation import generation
from ..runtime.report import GenerationReport, report_of
from ..schedules import Schedule
from .cache import CachedAttention, LayerState, Probe, cached_code
from .overrides import Overrides
from .run import Run, activate, active_run
from .step import CompiledStep
from .structure import Requirement

GENERATE = "autoregressive_infer_cfg"


@dataclass(frozen=True)
class Replacement:
    """One thing that an adapter replaces: `what` of the model, and `why`."""

    what: str
    why: str


class Adapter(ABC):
    """Accelerates one model of one family.

    Attributes:
        family: name of the family for messages.
        requirements: what a model of the family has.
        replacements: what is replaced on the instance, and why.
        report: of the last generation that ended, or None.
    """

    family: ClassVar[str]
    requirements: ClassVar[tuple[Requirement, ...]]
    replacements: ClassVar[tuple[Replacement, ...]]

    def __init__(self, model: nn.Module, options: Options) -> None:
        # Models of other repositories: what they have is checked, not typed.
        self.model: Any = model
        self.options = options
        self.report: GenerationReport | None = None
        self.blocks = self.find_blocks()
        self._generate = getattr(model, GENERATE)
        self._forwards = [block.forward for block in self.blocks]
        self._signature = inspect.signature(self.blocks[0].forward)
        self._code: dict[type[nn.Module], Callable[..., Any]] = {}
        self._layouts: dict[object, tuple[Probe, Probe]] = {}
        self.views: list[Any] = [self.view(block) for block in self.blocks]
        self.function = self.step_function()
        self.step = CompiledStep(self.function, options, type(model).__name__)

    @abstractmethod
    def find_blocks(self) -> list[nn.Module]:
        """The blocks in the order in which the loop calls them."""

    @abstractmethod
    def attention_of(self, block: Any) -> Any:
        """The self-attention of a block."""

    @abstractmethod
    def view(self, block: Any) -> nn.Module:
        """The block as the step runs it."""

    @abstractmethod
    def step_function(self) -> Callable[..., Tensor]:
        """The step: (x, *inputs of the adapter, keys, values, end) to x."""

    @abstractmethod
    def schedule_of(self, arguments: Mapping[str, Any]) -> Schedule:
        """The schedule of a call with these arguments."""

    @abstractmethod
    def inputs(self, run: Run, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """The step's inputs besides hidden states and cache; `given` are the first block's arguments."""

    @abstractmethod
    def try_block(self, x: Tensor, inputs: tuple[Any, ...], state: LayerState) -> Tensor:
        """The first block as the step runs it, with `state` for its cache."""

    def prepare(self, run: Run) -> None:  # noqa: B027 - not every family needs it
        """Change the arguments of the call before it starts."""

    def install(self, overrides: Overrides) -> None:
        """Replace what is to be replaced."""
        overrides.method(self.model, GENERATE, self.generate)
        overrides.method(self.blocks[0], "forward", self._first_block)
        for layer in range(1, len(self.blocks)):
            overrides.method(self.blocks[layer], "forward", self._later_block(layer))

    def cached(self, attention: nn.Module) -> CachedAttention:
        """An attention of the step; all of one class share their code."""
        kind = type(attention)
        if kind not in self._code:
            self._code[kind] = cached_code(attention)
        return CachedAttention(attention, self._code[kind])

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Call upstream's generation method with a generation of the backend around it.

        Raises:
            AdapterError: the model is in training mode, or its loop is not what the adapter expects.
        """
        if self.model.training:
            raise AdapterError(
                f"{type(self.model).__name__} is in training mode: expected model.eval() before generating"
            )
        bound = inspect.signature(self._generate).bind(*args, **kwargs)
        bound.apply_defaults()
        with generation(self.schedule_of(bound.arguments), int(bound.arguments["B"])) as opened:
            run = Run(self.model, opened, bound.arguments)
            self.prepare(run)
            with activate(run):
                try:
                    result = self._generate(*bound.args, **bound.kwargs)
                except BaseException:
                    for block in self.blocks:
                        self.attention_of(block).kv_caching(False)
                    raise
        self.report = report_of(opened)
        return result

    def _first_block(self, *args: Any, **kwargs: Any) -> Any:
        run = active_run(self.model)
        if run is None:
            return self._forwards[0](*args, **kwargs)
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        x = given["x"]
        run.begin_step(x.shape[1])
        inputs = self.inputs(run, given)
        if run.scale == 0:
            self._allocate(run, x, inputs, given)
        return self.step(x, *inputs, run.keys, run.values, run.end)

    def _later_block(self, layer: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if active_run(self.model) is None:
                return self._forwards[layer](*args, **kwargs)
            return args[0] if args else kwargs["x"]

        return forward

    def _allocate(self, run: Run, x: Tensor, inputs: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        """Make the cache of a generation as the first attention wants it."""
        keys, values = self._layout(run, x, inputs, given)
        tokens = run.generation.schedule.ends[-1]
        run.keys = [keys.buffer(len(x), tokens, x.device) for _ in self.blocks]
        run.values = [values.buffer(len(x), tokens, x.device) for _ in self.blocks]

    def _layout(
        self, run: Run, x: Tensor, inputs: tuple[Any, ...], given: Mapping[str, Any]
    ) -> tuple[Probe, Probe]:
        """Shape, dtype and growing axis of keys and values, from a trial run of the first block.

        The same run compares the step's view of the block with upstream's own code.
        """
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        place = (x.dtype, next(self.blocks[0].parameters()).dtype, x.device, autocast)
        if place not in self._layouts:
            probes = Probe(), Probe()
            found = self.try_block(x, inputs, LayerState(*probes, run.end))
            if any(probe.shape is None for probe in probes):
                raise AdapterError(
                    f"{type(self.model).__name__}: the attention appended nothing to cached_k and cached_v, "
                    f"expected torch.cat((cache, new), dim) as in {self.family}"
                )
            expected = self._forwards[0](**given)
            self.attention_of(self.blocks[0]).kv_caching(True)
            if not torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=1e-3):
                raise AdapterError(
                    f"{type(self.model).__name__}: the first block gives another result than {self.family}'s "
                    f"structure implies (off by {float((found - expected).abs().max()):.1e}); expected "
                    f"blocks as in {self.family}"
                )
            self._layouts[place] = probes
        return self._layouts[place]
