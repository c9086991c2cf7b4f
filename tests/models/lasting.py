"""Compiled code that outlives `torch.compiler.reset()`: a session traces its models once, not once a file."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch._dynamo
from torch import nn
from torch._dynamo import convert_frame, pgo
from torch._dynamo.utils import orig_code_map

# Code objects, by which Dynamo finds graphs; by their names, by which it finds what it learnt of sizes.
_LASTING: dict[str, types.CodeType] = {}
_NUMBERS = itertools.count()


def own_forward(model: nn.Module) -> Callable[..., Any]:
    """`model.forward` with a code object of its own: Dynamo shares its graphs with no other model."""
    forward = type(model).forward
    code = forward.__code__.replace(co_name=f"forward_{next(_NUMBERS)}")
    given = forward.__globals__, code.co_name, forward.__defaults__, forward.__closure__
    own = types.FunctionType(code, *given)
    own.__kwdefaults__ = forward.__kwdefaults__
    return types.MethodType(own, model)


def outlive_resets(forward: Callable[..., Any]) -> None:
    """Keep what Dynamo makes of an `own_forward` when the rest is reset."""
    code = forward.__code__
    _LASTING[code.co_name] = code


def forget(forward: Callable[..., Any]) -> None:
    """Let the next reset take it."""
    del _LASTING[forward.__code__.co_name]


def _written() -> list[tuple[types.CodeType, types.CodeType]]:
    """Code that Dynamo wrote, and what it wrote it for."""
    found = [(reference(), orig_code_map.values[key]) for key, reference in orig_code_map.refs.items()]
    return [(out, code) for out, code in found if out is not None]


def _leaving_the_lasting(reset: Callable[[], None]) -> Callable[[], None]:
    @wraps(reset)
    def wrapper() -> None:
        lasting = {id(code) for code in _LASTING.values()}
        codes = convert_frame.input_codes
        codes.seen[:] = [code for code in codes.seen if id(code()) not in lasting]
        learnt = {key: state for key, state in pgo.get_code_state().items() if key.name in _LASTING}
        written = [(out, code) for out, code in _written() if id(code) in lasting]
        reset()
        pgo.get_code_state().update(learnt)
        for out, code in written:
            orig_code_map[out] = code
        for code in _LASTING.values():
            codes.add(code)

    return wrapper


torch._dynamo.reset = _leaving_the_lasting(torch._dynamo.reset)
