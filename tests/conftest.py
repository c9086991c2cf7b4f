"""Shared by all tests: markers that depend on the machine, hypothesis profiles, random state, garbage."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import fx

from toprovar_fx.lowering.region import Region
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.schedules import Schedule

from .browser import CHROMIUM

# Drawing tensors of many shapes is slow on two shared cores; a slow machine is no failure.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, max_examples=25, database=None, **_PATIENT)
settings.register_profile("nightly", max_examples=500, print_blob=True, **_PATIENT)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", action="store_true", help="run nightly tests, and hypothesis with 500 examples"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Pytest listens to loggers that do not propagate; for it torch's trace would write out every graph.
    logging.getLogger("torch.__trace").propagate = True
    settings.load_profile("nightly" if config.getoption("--nightly") else "ci")
    # Tracing makes many objects that live on; collections at Python's pace walk them for a tenth of all time.
    gc.set_threshold(50_000, 50, 100)
    if not config.getoption("--nightly"):
        # With symbolic sizes Dynamo's cache of fake tensors costs more than it saves, a seventh of all time;
        # in processes that tests start, too. Read when torch._dynamo is imported, so it is set before.
        assert "torch._dynamo" not in sys.modules
        os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "browser" in item.keywords and CHROMIUM is None:
            item.add_marker(pytest.mark.skip(reason="needs chromium or chrome"))
        if "nightly" in item.keywords and not config.getoption("--nightly"):
            item.add_marker(pytest.mark.skip(reason="runs with --nightly"))


@pytest.fixture(autouse=True, scope="session")
def guards_are_not_timed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Dynamo times the guards of every graph for its log, and flushes the processor's caches before."""
    if request.config.getoption("--nightly"):
        yield
        return
    import torch._dynamo.guards

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._dynamo.guards, "profile_guard_manager", lambda *_: 0.0)
        yield


@pytest.fixture(autouse=True)
def fixed_random_state() -> None:
    """Every test starts from the same random state, so that it passes alone and in any order."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def old_objects_are_not_walked() -> None:
    """What earlier files left, such as traced models that files share, costs a collection 10 s and more."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def entropies_as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entropies' operator looks at its bounds on a CPU, where nobody waits, and nowhere else."""
    module = import_module("toprovar_fx.ops.attention_entropy")
    monkeypatch.setattr(module, "_sharp_groups", lambda q, k, scale: [False] * len(q))


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Compile from nothing, and leave no compiled code to the next test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def many_graphs(fresh_dynamo: None) -> Iterator[None]:
    """As `fresh_dynamo`, with room for more graphs of one function than Dynamo allows by default."""
    from .models.subjects import MANY_GRAPHS

    with MANY_GRAPHS:
        yield


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], torch.Tensor]:
    """By (scale, layer), the entropies that taps hand to controllers in this test."""
    from toprovar_fx.runtime.controller import Controller

    taken: dict[tuple[int, int], torch.Tensor] = {}
    original = Controller.observe

    def observe(
        self: Controller, layer: int, entropy: torch.Tensor, keep: torch.Tensor | None, length: int
    ) -> None:
        taken[self.scale, layer] = entropy.clone()
        original(self, layer, entropy, keep, length)

    monkeypatch.setattr(Controller, "observe", observe)
    return taken


@pytest.fixture
def without_table_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewriter with the classic bug: position tables stay in the order of the full scale.

    They are cut to K rows; left whole, the proof of shapes would see them.
    """

    from toprovar_fx.analysis.transfers import Axes
    from toprovar_fx.passes.rows import Rewriter

    def ungathered(self: Rewriter, operand: fx.Node, axes: Axes, rank: int) -> fx.Node:
        dimension = axes.token - rank
        return self.graph.call_method("narrow", (self.mapped[operand], dimension, 0, self._count(kept=True)))

    monkeypatch.setattr(Rewriter, "_gather_table", ungathered)


@pytest.fixture(scope="module")
def fresh_traces() -> Iterator[None]:
    """Trace from nothing: what else was traced of a model decides which of its graphs a size runs in."""
    from .models.fixtures import traced_anew

    with traced_anew():
        yield


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, fresh_dynamo: None) -> object:
    """A `CpuRecorder`, with which programs on a CPU record their steps and dense graphs."""
    from toprovar_fx.runtime.cuda_graphs import GraphMemory

    from .models.recorders import CpuRecorder

    made = CpuRecorder()
    for user in ("toprovar_fx.runtime.step_parts", "toprovar_fx.dense_program"):
        monkeypatch.setattr(f"{user}.graph_memory", lambda options, device: GraphMemory(made, False))
    return made


@pytest.fixture(scope="module")
def regions() -> Iterator[dict[str, Region]]:
    """The block graphs of a small Infinity, by name."""
    block_kernels = pytest.importorskip("benchmarks.block_kernels", reason="needs Triton, for Linux only")
    torch.compiler.reset()
    small = replace(CONFIGS["infinity-2b"], width=256, heads=2)
    yield block_kernels.block_regions(small, Schedule.infinity())
    torch.compiler.reset()
