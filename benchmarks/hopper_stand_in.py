"""What Inductor would generate for an H100 or H200, on a machine without one: lowered and printed, never run.

Block graphs get fake CUDA tensors, and questions about the device the answers of a stand-in. The code is that
of the installed torch (2.11 and 2.13 were tried, builds with and without CUDA), whose choices differ between
releases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._dynamo import device_interface
from torch._inductor import scheduler
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from toprovar_fx._torch_private import SymbolicInputs, compile_with_inductor
from toprovar_fx.lowering.for_device import for_device
from toprovar_fx.lowering.region import Region

DEVICE = torch.device("cuda", 0)
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10,
    L2_cache_size=50 * 2**20,
)
_CALL = re.compile(r"(triton_\w+)\.run\(|extern_kernels\.(\w+)\(|torch\.ops\.(\w+\.\w+)\.\w+\(")
_ORIGIN = re.compile(r"# Topologically Sorted Source Nodes: \[(.*?)\]")


@dataclass(frozen=True)
class Launch:
    """One kernel, or one call of a library, of a compiled graph.

    Attributes:
        name: `triton_...` for Inductor's kernels, else the library's function.
        nodes: names of the graph's nodes that it computes.
    """

    name: str
    nodes: str

    @property
    def generated(self) -> bool:
        """Whether Inductor wrote it."""
        return self.name.startswith("triton_")


def launches(region: Region, hints: Mapping[str, int]) -> list[Launch]:
    """What a call of a region would launch on the stand-in, in order.

    Args:
        region: of half-precision tensors, from any device.
        hints: values of the size symbols by name; others are 4096.
    """
    return read_launches(generated_code(region, hints))


def read_launches(code: str) -> list[Launch]:
    """The launches in the code of a wrapper."""
    found, nodes = [], ""
    for line in code[code.rindex("def call(") :].splitlines():
        if origin := _ORIGIN.search(line):
            nodes = origin[1]
        elif called := _CALL.search(line):
            found.append(Launch(next(name for name in called.groups() if name), nodes))
    return found


def generated_code(region: Region, hints: Mapping[str, int]) -> str:
    """The wrapper and its kernels that Inductor generates for a region on the stand-in."""
    specs = [spec if spec.device is None else replace(spec, device=DEVICE) for spec in region.specs]
    symbols = {symbol for spec in specs for symbol in spec.symbols}
    copied = fx.Graph()
    # The values of the trace stay: for_device reads shapes and types off them.
    copied.output(copied.graph_copy(region.graph.graph, {}))
    graph = fx.GraphModule(region.graph, copied)
    for node, spec in zip(graph.graph.find_nodes(op="placeholder"), specs, strict=True):
        node.meta["toprovar_spec"] = spec
    inputs = SymbolicInputs(specs, {symbol: hints.get(str(symbol), 4096) for symbol in symbols})
    try:
        with _stand_in():
            compile_with_inductor(_with_cudnn(for_device(graph)), inputs, {"fx_graph_cache": False})
    except _Generated as generated:
        return generated.code
    raise AssertionError("Inductor did not come to the end of its code generation")


class _Generated(BaseException):
    """Leaves Inductor where it would compile what it generated; nothing catches it on the way."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = code


def _stop(lowering: GraphLowering) -> None:
    code, _ = lowering.codegen()
    raise _Generated(code.value)


@contextmanager
def _stand_in() -> Iterator[None]:
    """Answer for the device, in this process and block alone."""
    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0
    )
    answers: list[tuple[Any, str, object]] = [
        (torch.cuda, "get_device_properties", lambda *_, **__: PROPERTIES),
        (torch.cuda, "get_device_capability", lambda *_, **__: (PROPERTIES.major, PROPERTIES.minor)),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        (torch.version, "cuda", torch.version.cuda or "13.0"),
        (device_interface.CudaInterface, "get_device_properties", staticmethod(lambda *_, **__: PROPERTIES)),
        (device_interface.CudaInterface, "is_bf16_supported", staticmethod(lambda *_, **__: True)),
        (scheduler, "has_triton", lambda: True),
        (driver, "_active", target),
        (GraphLowering, "compile_to_module", _stop),
    ]
    # Indexing and `copy_` ask for the device before they dispatch; the operators behind them do not.
    for kind in (FakeTensor, FunctionalTensor):
        answers += [(kind, "__getitem__", _read), (kind, "__setitem__", _write), (kind, "copy_", _copy)]
    with ExitStack() as stack:
        for holder, name, answer in answers:
            stack.enter_context(mock.patch.object(holder, name, answer, create=True))
        known = {"cuda": [PROPERTIES]}
        stack.enter_context(mock.patch.dict(device_interface.caching_worker_device_properties, known))
        stack.enter_context(mock.patch.dict(device_interface.caching_worker_current_devices, {"cuda": 0}))
        yield


def _read(x: Tensor, index: Any) -> Tensor:
    """Basic indexing by the operators that it stands for."""
    entries = index if isinstance(index, tuple) else (index,)
    axis = 0
    for entry in entries:
        if entry is None:
            x, axis = torch.ops.aten.unsqueeze(x, axis), axis + 1
        elif isinstance(entry, slice):
            if entry.start is not None or entry.stop is not None:
                stop = 2**63 - 1 if entry.stop is None else entry.stop
                x = torch.ops.aten.slice(x, axis, entry.start or 0, stop, entry.step or 1)
            axis += 1
        elif isinstance(entry, (int, torch.SymInt)):
            x = torch.ops.aten.select(x, axis, entry)
        else:
            raise NotImplementedError(f"an index of {type(entry).__name__}")
    return x


def _write(x: Tensor, index: Any, value: Tensor) -> None:
    torch.ops.aten.copy_(_read(x, index), value)


def _copy(x: Tensor, other: Tensor, non_blocking: bool = False) -> Tensor:
    copied: Tensor = torch.ops.aten.copy_(x, other, non_blocking)
    return copied


def _with_cudnn(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with cuDNN's attention, which Hopper takes; the choice itself asks the device."""
    stock: Callable[..., Tensor] = torch.nn.functional.scaled_dot_product_attention
    for node in graph.graph.nodes:
        if node.target is stock:
            node.target = _cudnn_attention
    graph.recompile()
    return graph


def _cudnn_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    attended: Tensor = attend(q, k, v, attn_mask, False, dropout_p, is_causal, False, scale=scale)[0]
    return attended
