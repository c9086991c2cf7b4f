"""Says so when the backend was asked for and had nothing to do: pruning that silently never happens.

`torch.compile(model)` wraps the model's `forward` and nothing else. A model that generates through another
method, as upstream VAR does, then runs uncompiled, and no code of this package is ever called. What can be
seen is that torch looked the backend up by its name and no graph had come when the interpreter ends.
"""

from __future__ import annotations

import atexit

from .._torch_private import named_as_backend
from ..user_line import warn_at_user_line

_ADVICE = (
    "torch.compile(model) wraps model.forward alone; for a model that generates through another method, such "
    "as upstream VAR and Infinity, use toprovar_fx.accelerate(model)"
)
_graphs = 0


def note_graph() -> None:
    """Note that the backend received a graph."""
    global _graphs
    _graphs += 1


def warn_if_silent() -> None:
    """Warn if the backend was named to torch.compile and has received no graph."""
    if named_as_backend("toprovar") and not _graphs:
        warn_at_user_line(
            f"toprovar: the backend was named to torch.compile and never received a graph; {_ADVICE}"
        )


def warn_outside_generation() -> None:
    """Warn that a graph that could be pruned ran where nothing says which scale it is."""
    warn_at_user_line(
        "toprovar: a graph that could be pruned ran outside a generation, so nothing was pruned; run the "
        f"loop over scales in toprovar_fx.generation(...). {_ADVICE}"
    )


def warn_before_first_scale() -> None:
    """Warn that a graph that could be pruned ran in a generation of which no scale had begun."""
    warn_at_user_line(
        "toprovar: a graph that could be pruned ran in a generation before its first scale began, so nothing "
        "was pruned; call begin_scale(scale) of the innermost generation(...) before every scale"
    )


def warn_if_idle(reasons: str) -> None:
    """Warn that a generation was to be pruned and no graph of it could be.

    Args:
        reasons: why its graphs stayed dense, in words; "" if there was no graph.
    """
    warn_at_user_line(
        "toprovar: this generation ran without a prunable graph, so nothing was pruned. "
        f"Reasons: {reasons or 'what was compiled was never traced as a scale step'}. "
        "Compile the module whose forward is one scale step, or see toprovar_fx.explain."
    )


atexit.register(warn_if_silent)
