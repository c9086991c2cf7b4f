"""Specs of a graph's inputs, and the sizes that it was traced at."""

from __future__ import annotations

import sympy
import torch
from torch import fx

from ..input_specs import InputSpec
from .shapes import as_size, as_traced, value_of

# What compiled kernels assume of the addresses of their inputs.
ALIGNMENT_BYTES = 16


def spec_of(placeholder: fx.Node) -> InputSpec:
    """The spec that a pass attached, or the one read off Dynamo's example value."""
    if "toprovar_spec" in placeholder.meta:
        return placeholder.meta["toprovar_spec"]
    value = value_of(placeholder)
    if isinstance(value, torch.Tensor):
        return InputSpec(
            shape=tuple(as_size(size) for size in value.shape),
            stride=tuple(as_size(step) for step in value.stride()),
            dtype=value.dtype,
            device=value.device,
            misaligned=_is_misaligned(value),
        )
    return InputSpec(value=as_size(value))


def traced_sizes(graph: fx.Graph) -> dict[sympy.Symbol, int]:
    """The values that the size symbols of a graph from Dynamo had when it was traced."""
    found: dict[sympy.Symbol, int] = {}
    for node in graph.nodes:
        value = value_of(node) if node.op == "placeholder" else None
        sizes = list(value.shape) if isinstance(value, torch.Tensor) else [value]
        for size in sizes:
            if isinstance(size, torch.SymInt) and isinstance(symbol := as_size(size), sympy.Symbol):
                found[symbol] = as_traced(size)
    return found


def graph_specs(graph: fx.Graph) -> list[InputSpec]:
    """Specs of all placeholders in order."""
    return [spec_of(node) for node in graph.nodes if node.op == "placeholder"]


def _is_misaligned(value: torch.Tensor) -> bool:
    """Whether the first element of a tensor stood between the addresses that kernels read from fastest."""
    if value.layout != torch.strided:
        return False
    offset = value.storage_offset()
    known = offset.node.hint if isinstance(offset, torch.SymInt) else offset
    return known is not None and int(known) * value.itemsize % ALIGNMENT_BYTES != 0
