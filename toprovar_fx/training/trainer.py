"""What both phases share: the state that survives an interruption, steps that survive failures, the loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .clock import Clock
from .compiling import Compilation
from .ema import Average
from .meter import Meter
from .settings import RunSettings
from .storage import save_state


@dataclass(frozen=True)
class Stepped:
    """One optimiser step that was done.

    Attributes:
        values: detached values for the meter.
        images: how many it saw.
        seconds: what it took, for the memory of the average.
    """

    values: Mapping[str, Tensor]
    images: int
    seconds: float


class Trainer:
    """A module under training.

    Args:
        run: see `settings`.
        module: what is trained, on `device`.
        optimiser: of its parameters.
        memory: memory of the weight average as a share of the budget.
        path: file of the resumable state.
        state: what was in it, or None.
        device: device of everything.
    """

    def __init__(
        self,
        run: RunSettings,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        memory: float,
        path: Path,
        state: Mapping[str, Any] | None,
        device: torch.device,
    ) -> None:
        self.run_settings, self.module, self.optimiser = run, module, optimiser
        self.path, self.device = path, device
        self.average = Average(module, max(run.seconds * memory, 1e-3))
        self.clock = Clock(run.seconds, run.session_seconds, float(state["elapsed"]) if state else 0.0)
        self.steps = 0
        self.last: dict[str, list[float]] = {}
        if state is not None:
            module.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            self.average.load_state_dict(state["average"])
            self.steps = int(state["steps"])
        self.compilation = Compilation(run.compile)

    def save(self) -> None:
        """Write the resumable state."""
        state: dict[str, Any] = {
            "model": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict(),
            "steps": self.steps,
            "elapsed": self.clock.elapsed,
        }
        save_state(self.path, state)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of all parameters."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def guarded(
        self, step: Callable[[], dict[str, Tensor]], halve: Callable[[], str | None]
    ) -> dict[str, Tensor] | None:
        """Do a step that survives a failing compiler and a full device; then the result is None.

        Args:
            step: the step.
            halve: makes its batch smaller and says what it is now; None if it is the smallest already.
        """
        try:
            return step()
        except torch.OutOfMemoryError:
            smaller = halve()
            if smaller is None:
                raise
            say(f"out of memory: {smaller} from here")
        except Exception as error:
            if not self.compilation.give_up(error):
                raise
        self.optimiser.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def loop(
        self, name: str, rate_at: Callable[[float], float], step_at: Callable[[float], Stepped | None]
    ) -> None:
        """Step until the budget, the session limit or a signal; the clock counts meanwhile.

        Args:
            name: of the phase, for the progress line.
            rate_at: learning rate at a fraction of the budget.
            step_at: does a step at a fraction of the budget; None if it failed and is to be tried again.
        """
        meter = Meter(self.clock, self.run_settings.log_every)
        saved = time.monotonic()
        self.clock.start()
        while not self.clock.over:
            fraction = self.clock.fraction
            rate = rate_at(fraction)
            self.set_rate(rate)
            done = step_at(fraction)
            if done is None:
                continue
            self.steps += 1
            self.average.update(done.seconds)
            meter.add(done.values, done.images)
            if meter.due:
                meter.line(f"{name} step {self.steps} lr {rate:.1e}")
                self.last.update(meter.last)
                self.check(meter.last)
            if time.monotonic() - saved > self.run_settings.save_every:
                self.save()
                saved = time.monotonic()
        self.clock.pause()

    def check(self, last: Mapping[str, list[float]]) -> None:
        """Look at the averages of a progress line, before the state is saved again."""

    def finish(self) -> dict[str, Any]:
        """Put the averaged weights in place, for inference, and return what the summary says of the run."""
        self.compilation.enabled = False
        self.average.copy_to(self.module)
        self.module.eval()
        return {"steps": self.steps, "seconds": round(self.clock.elapsed, 1)}


def say(message: str) -> None:
    """Print a line on standard error, where progress goes."""
    print(message, file=sys.stderr, flush=True)
