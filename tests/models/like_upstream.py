"""The two stand-ins for upstream models behind one interface, with weights for which every branch matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

from benchmarks.upstream_models import randomise
from benchmarks.upstream_oracle import PlainPruning
from toprovar_fx import accelerate
from toprovar_fx._torch_private import compile_apart
from toprovar_fx.accelerate import Accelerated
from toprovar_fx.adapters import step
from toprovar_fx.backend import toprovar
from toprovar_fx.options import Options

from .like_infinity import LikeInfinity
from .like_var import LikeVAR

SIDES = (1, 2, 3, 4, 6)
SCHEDULE = [(1, side, side) for side in SIDES]
KINDS = ("var", "infinity", "infinity, unfused")


class Case:
    """One stand-in; `generate` returns the code sum after every scale that ran."""

    def __init__(self, kind: str, seed: int = 1, depth: int = 3) -> None:
        self.kind = kind
        if kind == "var":
            self.model: nn.Module = LikeVAR(SIDES, depth)
            randomise(self.model.vae_quant_proxy[0], seed)
        else:
            self.model = LikeInfinity(SCHEDULE, depth, fused_norm=kind == "infinity")
        randomise(self.model.eval(), seed)

    def arguments(self, images: int, seed: int) -> dict[str, Any]:
        if self.kind == "var":
            return {"B": images, "label_B": torch.arange(images) + seed, "g_seed": seed, "cfg": 2.0}
        source = torch.Generator().manual_seed(seed)
        lengths = [3 + image + seed for image in range(images)]
        text = torch.randn(sum(lengths), 32, generator=source)
        starts = torch.tensor([0, *lengths]).cumsum(0).int()
        return {
            "scale_schedule": SCHEDULE,
            "label_B_or_BLT": (text, lengths, starts, max(lengths)),
            "B": images,
            "g_seed": seed,
            "cfg_list": [3] * len(SCHEDULE),
        }

    def generate(self, images: int = 1, seed: int = 0, **more: Any) -> list[Tensor]:
        self.model.autoregressive_infer_cfg(**{**self.arguments(images, seed), **more})
        return self.model.sums

    def blocks(self) -> list[nn.Module]:
        return list(self.model.blocks) if self.kind == "var" else self.model.unregistered_blocks

    def attentions(self) -> list[nn.Module]:
        return [block.attn if self.kind == "var" else block.sa for block in self.blocks()]

    def plainly(self, keeps: Mapping[tuple[int, int], Tensor], **arguments: Any) -> list[Tensor]:
        """A generation pruned without the backend."""
        with torch.no_grad(), PlainPruning(self.blocks(), [(side, side) for side in SIDES], keeps):
            return self.generate(**arguments)


class TracedOnce(Case):
    """A stand-in whose step Dynamo traces once in a session; the backend rewrites it for each test."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.step: Callable[..., Any] | None = None
        self.handle: Accelerated | None = None
        self.running: tuple[dict[int, Any], Options] = {}, Options()

    def accelerate(self, options: Mapping[str, object]) -> Accelerated:
        """As `toprovar_fx.accelerate`."""
        with mock.patch.object(step, "compile_apart", self._compile):
            self.handle = accelerate(self.model, options)
        return self.handle

    def restore(self) -> None:
        """Undo what the test before left accelerated."""
        if self.handle is not None:
            self.handle.restore()

    def _compile(
        self, function: Callable[..., Any], backend: object, options: Mapping[str, object], limit: int
    ) -> Callable[..., Any]:
        if self.step is None:
            self.step = compile_apart(function, self._backend, {}, limit)
        traced, running = self.step, ({}, Options.parse(options))

        def call(*arguments: Any) -> Any:
            self.running = running
            return traced(*arguments)

        return call

    def _backend(self, gm: fx.GraphModule, inputs: list[Any], options: object = None) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            programs, options = self.running
            if id(gm) not in programs:
                programs[id(gm)] = toprovar(gm, inputs, options=options)
            return programs[id(gm)](*arguments)

        return run


_TRACED: dict[str, TracedOnce] = {}


def traced_once(kind: str) -> TracedOnce:
    """The session's stand-in of a kind, not accelerated."""
    if kind not in _TRACED:
        _TRACED[kind] = TracedOnce(kind)
    _TRACED[kind].restore()
    return _TRACED[kind]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Bit for bit, scale by scale."""
    return len(left) == len(right) and all(map(torch.equal, left, right))


def kept_rows(handle: Accelerated) -> dict[tuple[int, int], Tensor]:
    """Keep sets of the last generation, empty ones for skipped layers."""
    assert handle.report is not None
    ledger = handle.report.controller.ledger
    rows = max(len(keep) for keep in ledger.keep_sets.values())
    nothing = torch.empty(rows, 0, dtype=torch.int64)
    return {
        **{(run.scale, run.layer): nothing for run in ledger.runs if run.arm == "skipped"},
        **ledger.keep_sets,
    }
