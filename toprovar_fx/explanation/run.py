"""Runs a model once under observation."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from .._torch_private import graph_breaks, is_compiled, uncompiled, with_dynamic_tokens
from ..backend import toprovar
from ..errors import OptionError
from ..options import Options
from ..pipeline import InfinityPipeline
from ..recording import recording
from ..version import __version__
from .collect import fill
from .explanation import Explanation


def explain(
    model: Callable[..., Any] | InfinityPipeline,
    *args: Any,
    options: Mapping[str, object] | Options | None = None,
    **kwargs: Any,
) -> Explanation:
    """Call ``model(*args, **kwargs)`` once, compiled, and report what the compiler did and why.

    The call runs without gradients, and hidden states ``[R, L, C]`` are traced with a symbol for L, as Dynamo
    does in a loop from the second scale on. A scale step that is called by itself runs dense, since nothing
    says which scale it is: the report then has graphs, passes, layers and fallbacks, but no kept tokens. To
    see what the gates decide, call it inside ``with toprovar_fx.generation(...)``, explain a pipeline, or put
    ``with toprovar_fx.explaining()`` around a loop of your own.

    Args:
        model: a module, a function or an `InfinityPipeline`. What ``torch.compile`` made already (for a
            pipeline, its transformer) is called as it is; everything else is compiled with this backend, and
            the model itself is left alone.
        args: of the call.
        options: of the backend, as in ``torch.compile(..., options=options)``.
        kwargs: of the call.

    Raises:
        OptionError: an invalid option, options for a model that is compiled already, or no callable.
    """
    settings = Options.parse(options)
    call, made_here = _callable(model, settings)
    if not made_here and options is not None:
        raise OptionError("options: expected None, since the model was compiled with options of its own")
    if made_here and not isinstance(model, InfinityPipeline):
        args = tuple(with_dynamic_tokens(value) for value in args)
        kwargs = {name: with_dynamic_tokens(value) for name, value in kwargs.items()}
    with explaining(_name(model)) as found, torch.no_grad():
        found.options = settings.as_dict() if made_here else {}
        found.output = call(*args, **kwargs)
    return found


@contextmanager
def explaining(model: str = "what ran here") -> Iterator[Explanation]:
    """Report on all models compiled with this backend that run in the block.

    Example:
        with toprovar_fx.explaining() as report:
            pipe("a red circle", seed=1)
        print(report)

    Args:
        model: a name for the report's title.

    Yields:
        The report; it is empty until the block ends.
    """
    found = Explanation(model, torch=torch.__version__, version=__version__)
    breaks, started = graph_breaks(), time.perf_counter()
    with recording() as seen:
        yield found
    found.seconds = time.perf_counter() - started
    found.graph_breaks = dict(Counter(graph_breaks()) - Counter(breaks))
    fill(found, seen)


def _callable(model: Any, settings: Options) -> tuple[Callable[..., Any], bool]:
    """What to call, and whether it was compiled here."""
    if isinstance(model, InfinityPipeline):
        if is_compiled(model.transformer):
            return model, False
        compiled = copy.copy(model)
        compiled.transformer = _compile(model.transformer, settings)
        return compiled, True
    if not callable(model):
        raise OptionError(f"model={type(model).__name__}: expected a module, a function or a pipeline")
    return (model, False) if is_compiled(model) else (_compile(model, settings), True)


def _compile(model: Callable[..., Any], settings: Options) -> Callable[..., Any]:
    return torch.compile(model, backend=toprovar, options=settings.as_dict())  # type: ignore[arg-type]


def _name(model: Any) -> str:
    inner = uncompiled(model)
    return getattr(inner, "__name__", None) or type(inner).__name__
