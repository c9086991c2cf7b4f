"""What an adapter relies on in a model, checked one by one, so that an error can say what was missing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Requirement:
    """One thing that an adapter needs.

    Attributes:
        what: in words that a user can look up in the model's code.
        holds: whether a model has it; an AttributeError, IndexError or TypeError counts as no.
    """

    what: str
    holds: Callable[[Any], bool]

    def met(self, model: object) -> bool:
        """Whether `model` has it."""
        try:
            return bool(self.holds(model))
        except (AttributeError, IndexError, TypeError, KeyError, StopIteration):
            return False


def missing(requirements: Sequence[Requirement], model: object) -> list[str]:
    """What `model` lacks, in words."""
    return [requirement.what for requirement in requirements if not requirement.met(model)]


def takes(function: Callable[..., Any], *names: str) -> bool:
    """Whether a function has parameters of these names."""
    return set(names) <= set(inspect.signature(function).parameters)


def has_parts(module: object, modules: Iterable[str] = (), values: Iterable[str] = ()) -> bool:
    """Whether `module` has submodules and other attributes of these names."""
    return all(isinstance(getattr(module, name), nn.Module) for name in modules) and all(
        hasattr(module, name) for name in values
    )


def caches_by_attribute(attention: object) -> bool:
    """Whether an attention keeps keys and values in its attributes, switched by `kv_caching(enable)`."""
    return (
        has_parts(attention, ("mat_qkv", "proj"), ("caching", "cached_k", "cached_v"))
        and takes(attention.kv_caching, "enable")  # type: ignore[attr-defined]
        and "torch" in type(attention).forward.__globals__  # type: ignore[attr-defined]
    )


def untouched(module: nn.Module, *names: str) -> bool:
    """Whether no instance attribute stands in for a method of the class, other than that method itself."""
    found = {name: vars(module)[name] for name in names if name in vars(module)}
    return all(value == getattr(type(module), name).__get__(module) for name, value in found.items())
