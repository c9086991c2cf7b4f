"""Runs a function of somebody else's module with other globals, without touching that module."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch


def rebound(function: Callable[..., Any], replacements: Mapping[object, object]) -> Callable[..., Any]:
    """A copy of a function for which some of its module's globals are replaced.

    Args:
        function: a plain Python function.
        replacements: from a value that a global of the function may have to what the copy sees instead.

    The copy's namespace has no `__name__`: Dynamo then reads globals from the namespace itself and does not
    look up the module by name.
    """
    assert isinstance(function, types.FunctionType)
    known = function.__globals__
    namespace = {name: known[name] for name in function.__code__.co_names if name in known}
    for name, value in namespace.items():
        for old, new in replacements.items():
            if value is old:
                namespace[name] = new
    namespace["__builtins__"] = known["__builtins__"]
    code = function.__code__.replace()
    copied = types.FunctionType(
        code, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def torch_with(**attributes: object) -> types.ModuleType:
    """A stand-in for the name `torch` in which some attributes are others; `torch` itself stays as it is."""
    module = types.ModuleType("torch")
    vars(module).update(vars(torch))
    vars(module).update(attributes)
    vars(module)["__getattr__"] = lambda name: getattr(torch, name)
    return module
