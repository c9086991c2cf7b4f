"""Inductor computes what the traced graphs compute, from few compilations with symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sympy
import torch
from torch import fx

from toprovar_fx.input_specs import tensor_spec
from toprovar_fx.live_programs import programs
from toprovar_fx.lowering.region import Region
from toprovar_fx.options import Options
from toprovar_fx.program import StepProgram

from .models.subjects import MANY_GRAPHS, OPEN, Outcome, Subject, TinyInfinity, generate, identical, worst

pytestmark = pytest.mark.slow

# Many different K, in several scales and layers, and layers whose entropies rank the others.
KEEP = {3: 0.5, 4: {1: 0.25, 2: 0.7}, 5: {1: 0.3, 2: 0.6}}
PRUNING = {**OPEN, "keep": KEEP, "entropy_source": "dense_layer"}
Compile = Callable[[dict[str, object]], tuple[Outcome, Callable[..., torch.Tensor]]]


@pytest.fixture(scope="module")
def subject() -> TinyInfinity:
    return TinyInfinity(depth=3)


@pytest.fixture(scope="module")
def run(subject: Subject) -> Iterator[Compile]:
    """Compile under some options once, and run a generation."""
    torch.compiler.reset()
    known: dict[Options, tuple[Outcome, Callable[..., torch.Tensor]]] = {}

    def get(options: dict[str, object]) -> tuple[Outcome, Callable[..., torch.Tensor]]:
        key = Options.parse(options)
        if key not in known:
            forward = torch.compile(subject.model, backend="toprovar", options=options)
            known[key] = generate(subject, forward), forward
        return known[key]

    with MANY_GRAPHS:
        yield get
    torch.compiler.reset()


def compilations(options: dict[str, object]) -> list[int]:
    """Compilations of every graph of the step program, graphs that never ran left out."""
    (step,) = (p for p in programs(Options.parse(options)) if isinstance(p, StepProgram))
    return [len(region.compile_seconds) for region in step.regions if region.compile_seconds]


def test_lossless(run, subject):
    outcome, _ = run({"preset": "lossless"})
    assert worst(outcome.logits, generate(subject, subject.model).logits) < 1e-4
    # One graph for all blocks and one for the head.
    assert compilations({"preset": "lossless"}) == [1, 1]


def test_pruned(run):
    outcome, _ = run(PRUNING)
    eager, _ = run({**PRUNING, "lowering": "eager"})
    assert outcome.arms(4) == ["tapped", "pruned", "pruned"]
    assert outcome.keeps.keys() == eager.keeps.keys()
    assert all(torch.equal(keep, eager.keeps[place]) for place, keep in outcome.keeps.items())
    assert worst(outcome.logits, eager.logits) < 1e-4


def test_few_graphs_serve_all_sizes(run):
    outcome, _ = run(PRUNING)
    assert len({count for scale in (3, 4, 5) for count in outcome.counts(scale)}) >= 7
    # Dense, tapped, pruned and head.
    assert sorted(compilations(PRUNING)) == [1, 1, 1, 1]


def test_a_second_generation_is_equal_and_compiles_nothing(run, subject):
    outcome, forward = run(PRUNING)
    before = compilations(PRUNING)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert identical(generate(subject, forward).logits, outcome.logits)
    assert compilations(PRUNING) == before


def test_sizes_that_only_fit_each_other_are_no_crash():
    """The table has a size of its own and is cut to the tokens: 64 tokens of 9 rows cannot be."""
    graph = fx.symbolic_trace(lambda x, table: x + table[: x.shape[0]])
    for holder, name in zip(graph.graph.find_nodes(op="placeholder"), ("L", "rows"), strict=True):
        size = sympy.Symbol(name, integer=True, positive=True)
        holder.meta["toprovar_spec"] = tensor_spec(
            (size, sympy.Integer(8)), torch.float32, torch.device("cpu")
        )
    region = Region(graph, "inductor", {"L": 64})
    for rows in (9, 16):
        x, table = torch.randn(2, rows, 8)
        torch.testing.assert_close(region(x, table), x + table)


def test_a_slice_of_a_single_row_runs_compiled(caplog):
    """Its first step is that of the whole row, which nothing depends on."""
    graph = fx.symbolic_trace(lambda keep: keep * 2 + 1)
    (holder,) = graph.graph.find_nodes(op="placeholder")
    size = sympy.Symbol("K", integer=True, positive=True)
    holder.meta["toprovar_spec"] = tensor_spec((sympy.Integer(1), size), torch.int64, torch.device("cpu"))
    region = Region(graph, "inductor", {"K": 64})
    keep = torch.arange(20)[None, :7]
    assert keep.stride() == (20, 1)
    with caplog.at_level("WARNING", "toprovar_fx"):
        assert torch.equal(region(keep), keep * 2 + 1)
    assert not caplog.records and len(region.compile_seconds) == 1
    assert torch.equal(region(torch.arange(30)[None, ::3]), torch.arange(30)[None, ::3] * 2 + 1)
