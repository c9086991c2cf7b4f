"""What Dynamo noted of its compilations, and torch's structured trace of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch._guards import CompileContext
from torch._logging._internal import LazyTraceHandler, trace_log, trace_structured


def compile_id() -> str | None:
    """Frame and count of Dynamo's compilation that runs, as "frame/count"; None outside of one.

    The count is 0 for the first compilation of a function's code and grows with every recompilation.
    """
    found = CompileContext.current_compile_id()
    return None if found is None else str(found)


def compilations_left() -> int | None:
    """How many more compilations of the function that is compiled Dynamo makes; None outside of one.

    After them it runs the function eagerly, without an error.
    """
    found = CompileContext.current_compile_id()
    if found is None or found.frame_compile_id is None:
        return None
    return max(0, int(torch._dynamo.config.recompile_limit) - found.frame_compile_id - 1)


@dataclass(frozen=True)
class FrameCompilation:
    """One compilation of a function's code by Dynamo.

    Attributes:
        code: "file:line name" of the function.
        reason: why an earlier compilation did not serve; None for the first one.
    """

    code: str
    reason: str | None


def frame_compilations() -> dict[str, FrameCompilation]:
    """The latest compilations of this process by compile id; torch keeps the last 64."""
    from torch._dynamo.utils import get_compilation_metrics

    found = {}
    for metrics in get_compilation_metrics():
        if metrics.compile_id is not None and metrics.co_name is not None:
            file = (metrics.co_filename or "").replace("\\", "/").rpartition("/")[2]
            code = f"{file}:{metrics.co_firstlineno} {metrics.co_name}"
            reason = " ".join((metrics.recompile_reason or "").partition("\n")[0].split())
            found[metrics.compile_id] = FrameCompilation(code, reason or None)
    return found


def graph_breaks() -> dict[str, int]:
    """How often Dynamo cut a graph in this process, by its reason."""
    from torch._dynamo.utils import counters

    return dict(counters["graph_break"])


def unique_graphs() -> int:
    """How many graphs Dynamo handed to a backend in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def trace_artifact(name: str, payload: Callable[[], str], encoding: str = "string") -> None:
    """Hand a text to torch's structured trace (`TORCH_TRACE`, read by tlparse); free unless tracing is on."""
    # Without a trace folder torch takes its handler away; others, such as a test runner's, want no text.
    if any(isinstance(handler, LazyTraceHandler) for handler in trace_log.handlers):
        trace_structured("artifact", lambda: {"name": name, "encoding": encoding}, payload_fn=payload)
