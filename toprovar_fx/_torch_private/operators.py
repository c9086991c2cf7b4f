"""Operators that run: a mode that sees them, and what their schemas say of their arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DispatchMode = TorchDispatchMode


def packet_of(func: object) -> object:
    """The operator that an overload belongs to; a function without overloads is its own."""
    return getattr(func, "_overloadpacket", func)


def written_arguments(func: object, args: Sequence[object], kwargs: Mapping[str, object]) -> list[object]:
    """Arguments that a call of an operator overload writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return []
    found = []
    for at, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[at] if at < len(args) else kwargs.get(argument.name))
    return found


def is_mutable(target: object) -> bool | None:
    """Whether an operator overload writes to an argument, by its schema; None for what has no schema."""
    schema = getattr(target, "_schema", None)
    return None if schema is None else bool(schema.is_mutable)


def parameter_names(target: object) -> tuple[str, ...]:
    """Names of an operator's parameters by its schema (the default overload's); none for a plain function."""
    schema = getattr(getattr(target, "default", target), "_schema", None)
    return () if schema is None else tuple(argument.name for argument in schema.arguments)


def required_parameters(target: object) -> tuple[str, ...]:
    """Names of the parameters that an operator has no default for."""
    schema = getattr(getattr(target, "default", target), "_schema", None)
    if schema is None:
        return ()
    return tuple(each.name for each in schema.arguments if not each.has_default_value())


def registered_name(target: object) -> str | None:
    """The name "namespace::operator" by which `torch.ops` finds a default overload, or None."""
    if not isinstance(target, torch._ops.OpOverload) or target._overloadname != "default":
        return None
    return target._schema.name


def namespace_of(target: object) -> str | None:
    """The namespace of an operator of `torch.ops`, an overload or all of them; None for anything else."""
    if not isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return None
    return packet_of(target)._qualified_op_name.partition("::")[0]  # type: ignore[attr-defined, no-any-return]


def linear_gelu_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`gelu(x W^T + b)` of rows `[N, C]`, approximated by tanh, in one product where the device has one."""
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
