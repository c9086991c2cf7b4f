"""What becomes of a graph that could not be compiled, by the option `on_error`."""

from __future__ import annotations

from collections.abc import Callable

from ..analysis.reasons import Fallback
from ..options import Options
from ..user_line import warn_at_user_line
from .generation import current_generation


def on_failure(options: Options) -> Callable[[Fallback], None] | None:
    """What to do whenever a graph runs as traced in place of compiled code.

    Returns:
        A function that warns, and notes the reason with the scale that runs; None with `on_error="raise"`,
        where the compiler's error is to be raised.
    """
    if options.on_error == "raise":
        return None

    def note(why: Fallback) -> None:
        running = current_generation()
        if running is not None:
            running.controller(options, 0).ledger.note(running.scale, why)
        warn_at_user_line(f"toprovar: {why}")

    return note
