"""One generation: which scale runs, and the controllers of the compiled models that take part in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ..errors import GraphError, ScheduleError
from ..options import Options
from ..schedules import Schedule
from ..user_line import warn_at_user_line
from .controller import Controller

if TYPE_CHECKING:
    from torch import Tensor

    from ..lowering.region import Region
    from .dense_calls import DenseCalls
    from .short_caches import ShortCaches

_RAISE_LIMIT = (
    "most likely because Dynamo's recompile limit was hit; raise it with torch.compile(..., "
    "recompile_limit=64) or torch._dynamo.config.patch(recompile_limit=64)"
)

# The generation that runs in this thread or task, or None.
RUNNING: ContextVar[Generation | None] = ContextVar("toprovar_generation", default=None)
# Whether generations that are opened now prune nothing.
_DENSE: ContextVar[bool] = ContextVar("toprovar_dense", default=False)


class Generation:
    """The state of one run over the scales, for `images` images at once.

    It lives in a context variable, so generations in different threads or tasks do not see each other, and
    what an interrupted one left behind goes with it.

    Attributes:
        schedule: scales that may run.
        images: B.
        scale: index of the scale that runs now, -1 before the first.
        exited_at: index of the first scale that the controllers decided not to run, or None.
        short_caches: those of the models whose layers left out rows so far.
        dense_calls: of the graphs that stay dense and were called so far.
        guided: whether the loop has told that there are unconditional rows, and asks at every scale.
        dense: whether it computes all tokens, whatever the models were compiled to prune.
    """

    def __init__(self, schedule: Schedule, images: int) -> None:
        if not isinstance(schedule, Schedule):
            raise ScheduleError(f"schedule={schedule!r}: expected a toprovar_fx.Schedule")
        if not isinstance(images, int) or isinstance(images, bool) or images < 1:
            raise ScheduleError(f"images={images!r}: expected a number of images, 1 or more")
        self.schedule = schedule
        self.images = images
        self.scale = -1
        self.exited_at: int | None = None
        self.guided = False
        self.dense = _DENSE.get()
        self.short_caches: list[ShortCaches] = []
        self.dense_calls: dict[Region, DenseCalls] = {}
        self._asked = False
        self._controllers: dict[Options, Controller] = {}
        self._begun_scales: set[int] = set()
        self._compiled_scales: set[int] = set()

    @property
    def controllers(self) -> tuple[Controller, ...]:
        """Controllers of the compiled models that were called so far."""
        return tuple(self._controllers.values())

    def begin_scale(self, scale: int) -> bool:
        """Announce scale `scale`; False if it and all later ones are not to be run.

        Raises:
            GraphError: the scale before ran eagerly on caches that lack rows.
            ScheduleError: there is no such scale, or it is to run again on caches that lack rows.
        """
        scales = len(self.schedule)
        if isinstance(scale, bool) or not isinstance(scale, int) or not 0 <= scale < scales:
            raise ScheduleError(f"scale {scale!r} of {scales}: expected 0 .. {scales - 1}")
        if scale <= self.scale and any(controller.caches.short for controller in self.controllers):
            raise ScheduleError(
                f"scale {scale} after scale {self.scale}, on caches that lack rows: expected a later one"
            )
        self.refuse_eager_reads()
        for controller in self.controllers:
            controller.end_scale()
        if self.exited_at is None and any(controller.exits(scale) for controller in self.controllers):
            self.exited_at = scale
        self.scale = scale
        self._begun_scales.add(scale)
        return self.exited_at is None

    def note_codes(self, summed: Tensor, decode: Callable[[Tensor], Tensor]) -> None:
        """Tell the policies the code sum after the scale that ran; some decide by what it shows.

        Args:
            summed: the codes of all scales so far, [B, d, h, w] at the sides of the last one.
            decode: makes images [B, 3, H, W] in [-1, 1] of a code sum of any sides.
        """
        for controller in self.controllers:
            controller.policy.observe_codes(self.scale, summed, decode)

    def conditional_only(self, guided: bool = True) -> bool:
        """Whether the scale that runs is to be run without its unconditional rows.

        Args:
            guided: whether there are any; without, the answer is no.
        """
        self._asked, self.guided = True, guided
        found = guided and any(
            controller.policy.conditional_only(self.scale) for controller in self.controllers
        )
        for controller in self.controllers if found else ():
            controller.leave_out_unconditional()
        return found

    def warn_if_not_asked(self) -> None:
        """Say that rows were to be left out and nobody asked which."""
        wanted = any(controller.options.guidance_until is not None for controller in self.controllers)
        if wanted and not self._asked:
            warn_at_user_line(
                "toprovar: guidance_until is set and the loop never asked conditional_only, so all rows ran; "
                "draw with InfinityPipeline, or ask at every scale and run the first B rows if it says so"
            )

    def enter_compiled(self) -> None:
        """Note that this scale runs in a graph of this backend."""
        self._compiled_scales.add(self.scale)

    def refuse_eager_reads(self) -> None:
        """Refuse to go on where the scale that ran may have read rows that pruning left out.

        Raises:
            GraphError: it ran outside the compiled graphs, and the caches of a compiled model lack rows.
        """
        ran = self.scale >= 0 and self.exited_at is None
        short = any(controller.caches.short for controller in self.controllers)
        if ran and short and self._compiled_scales and self.scale not in self._compiled_scales:
            raise GraphError(
                f"scale {self.scale} ran outside the compiled graphs, on keys and values of which earlier "
                f"scales left out rows, so its result would be wrong: {_RAISE_LIMIT}"
            )

    @property
    def eager_scales(self) -> list[int]:
        """Scales that began and ran outside the compiled graphs although another ran in one."""
        if not self._compiled_scales or self.exited_at is not None:
            return []
        return sorted(self._begun_scales - self._compiled_scales)

    def warn_if_eager(self) -> None:
        """Say loudly that Dynamo stopped compiling half-way: those scales ran eagerly, unpruned."""
        missing = self.eager_scales
        if missing:
            warn_at_user_line(f"toprovar: scales {missing} ran outside the compiled graphs, {_RAISE_LIMIT}")

    def controller(self, options: Options, layers: int, parts: int = 1) -> Controller:
        """The controller for these options, made on first use.

        Args:
            options: the settings that the caller was compiled with.
            layers: of the model, 0 for a graph without blocks; each of the `parts` of a layer counts.
            parts: in which every layer was cut.
        """
        found = self._controllers.get(options)
        if found is None:
            found = Controller(options.unpruned if self.dense else options, self)
            self._controllers[options] = found
        if layers > found.layers:
            found.adopt(layers, parts)
        return found


def current_generation() -> Generation | None:
    """The generation that runs in this thread or task, or None."""
    return RUNNING.get()


@contextmanager
def outside_generations() -> Iterator[None]:
    """Run the block as if no generation were open: all gates are shut."""
    token = RUNNING.set(None)
    try:
        yield
    finally:
        RUNNING.reset(token)


@contextmanager
def dense() -> Iterator[None]:
    """Compute all tokens in the generations that are opened inside, with the code that is compiled.

    A pruned image and a dense one come from one compilation: what is compiled at the first dense generation
    is what no scale needed before. It computes what `options={"preset": "lossless"}` computes.

    Example:
        pruned = pipe(prompt, seed=1)
        with toprovar_fx.dense():
            whole = pipe(prompt, seed=1)

    It holds in this thread or task alone.

    Raises:
        ScheduleError: a generation is open already, and has decided what it computes.
    """
    if RUNNING.get() is not None:
        raise ScheduleError("dense() inside a generation that is open: expected it around the generation")
    token = _DENSE.set(True)
    try:
        yield
    finally:
        _DENSE.reset(token)


@contextmanager
def generation(schedule: Schedule, images: int = 1) -> Iterator[Generation]:
    """Open a generation; the pipeline does this, and so does a user who runs the scale loop by hand.

    Example:
        with toprovar_fx.generation(schedule, images=1) as run:
            for scale in range(len(schedule)):
                if not run.begin_scale(scale):
                    break
                logits = compiled(hidden, context, cache, schedule.ends[scale])

    Args:
        schedule: the scales.
        images: B; the model's batch rows are B, or 2B with guidance: [conditional, unconditional].

    Raises:
        ScheduleError: `schedule` is no Schedule, or `images` is below 1.
        GraphError: at the end, or at a scale's begin: a scale ran eagerly on caches that lack rows.
    """
    opened = Generation(schedule, images)
    token = RUNNING.set(opened)
    try:
        yield opened
        opened.refuse_eager_reads()
        opened.warn_if_eager()
        opened.warn_if_not_asked()
        for controller in opened.controllers:
            controller.end_scale()
            controller.settle()
            controller.warn_if_idle()
    finally:
        RUNNING.reset(token)
        # Reports outlive the generation; keys and values must not.
        for controller in opened.controllers:
            controller.release()
