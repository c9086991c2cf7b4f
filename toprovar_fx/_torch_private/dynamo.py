"""How Dynamo traces a function: apart from others, with which sizes symbolic, how often, and how it fails.

Dynamo is imported where it is used: importing this package must not take the second that torch leaves to the
first compilation.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch


def restarts() -> tuple[type[Exception], ...]:
    """What is no failure: Dynamo asks itself to trace anew, or to leave a function alone."""
    from torch._dynamo import exc

    return exc.RestartAnalysis, exc.SkipFrame


def tracing_failures() -> tuple[type[Exception], ...]:
    """How tracing and compiling fail; recompiling where a test forbade it is not among them."""
    from torch._dynamo import exc

    return (
        exc.Unsupported,
        exc.InternalTorchDynamoError,
        exc.BackendCompilerFailed,
        exc.TorchRuntimeError,
        exc.FailOnRecompileLimitHit,
    )


def compile_apart(
    function: Callable[..., object], backend: Callable[..., object], options: dict[str, object], limit: int
) -> Callable[..., object]:
    """Compile a copy of `function` whose graphs and recompile limit are shared with no other function.

    Dynamo keeps its graphs by code object: two closures of one `def` would share them.

    Args:
        function: a plain Python function, traced without graph breaks.
        backend: as for `torch.compile`.
        options: as for `torch.compile`.
        limit: number of graphs; the next one is an error, not a silent eager run.
    """
    assert isinstance(function, types.FunctionType)
    own = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
    known = inspect.signature(torch.compile).parameters
    more = {"recompile_limit": limit} if "recompile_limit" in known else {}
    return torch.compile(own, fullgraph=True, backend=backend, options=options, **more)  # type: ignore[call-overload, no-any-return]


def recompile_limit(limit: int) -> AbstractContextManager[object]:
    """Let Dynamo make up to `limit` graphs of one function in the block, whoever compiles it."""
    from torch._dynamo import config

    patched: AbstractContextManager[object] = config.patch(
        recompile_limit=limit, accumulated_recompile_limit=max(limit, config.accumulated_recompile_limit)
    )
    return patched


def with_dynamic_tokens(value: object) -> object:
    """A hidden state ``[R, L, C]`` as a view whose L Dynamo traces as a symbol from the first call on.

    In a loop over scales Dynamo finds out by itself at the second size. Anything else is returned as it is.
    """
    if not isinstance(value, torch.Tensor) or value.dim() != 3 or not value.is_floating_point():
        return value
    from torch._dynamo import maybe_mark_dynamic

    view = value.detach()
    maybe_mark_dynamic(view, 1)
    return view


def varies(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """The same tensor, its size along `dimension` marked as one that differs between calls."""
    from torch._dynamo import maybe_mark_dynamic

    maybe_mark_dynamic(tensor, dimension)
    return tensor


def one_size(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """The same tensor, with a mark that its size along `dimension` is to be traced as a number.

    A graph that was traced without the mark refuses the tensor before most of its other guards are asked; one
    with it takes tensors with and without. Where nothing was compiled there is nothing to mark.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.mark_static(tensor, dimension)
    return tensor


def is_compiled(model: object) -> bool:
    """Whether `torch.compile` made `model`, or a part of it if it is a module."""
    parts = model.modules() if isinstance(model, torch.nn.Module) else [model]
    return any(hasattr(part, "_torchdynamo_orig_callable") or _is_wrapper(part) for part in parts)


def _is_wrapper(part: object) -> bool:
    from torch._dynamo.eval_frame import OptimizedModule

    compiled_call = getattr(part, "_compiled_call_impl", None)
    return isinstance(part, OptimizedModule) or compiled_call is not None


def named_as_backend(name: str) -> bool:
    """Whether `torch.compile` looked a backend up by this name in this process."""
    # Asked when the interpreter ends: where nothing was compiled it is not there, and is not imported for it.
    registry = sys.modules.get("torch._dynamo.backends.registry")
    return registry is not None and name in registry._COMPILER_FNS
