"""`explain`: what it finds, as text and JSON; the page has tests of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

import toprovar_fx
from toprovar_fx.errors import OptionError
from toprovar_fx.explanation import Explanation

from .models import odd
from .models.subjects import MANY_GRAPHS, OPEN, SQUARE, TinyPreNorm, generate

# Layer 1 is skipped at 6x6; the others are pruned at 4x4 and 8x8.
PRUNING = {
    **OPEN,
    "lowering": "eager",
    "keep": {3: 0.5, 4: {1: 0.0}, 5: 0.25},
    "entropy_source": "dense_layer",
}


@pytest.fixture(scope="module")
def found() -> Iterator[Explanation]:
    """A loop of one's own under observation."""
    torch.compiler.reset()
    subject = TinyPreNorm(True, True)
    with MANY_GRAPHS:
        forward = torch.compile(subject.model, backend="toprovar", options=PRUNING)
        with toprovar_fx.explaining("PreNorm") as report:
            generate(subject, forward)
    yield report
    torch.compiler.reset()


def test_graphs(found):
    first, step = found.graphs
    assert (first.kind, step.kind) == ("one token", "scale step")
    assert (first.calls, step.calls) == (1, len(SQUARE) - 1)
    assert step.code.endswith(" forward")
    assert step.operations > 100
    assert [site.layer for site in step.sites if site.prunable] == [0, 1, 2, 3]
    assert step.sites[0].gates.startswith("EntropyTap(")
    assert step.sites[1].gates.startswith("ScaleDepthGate(early=EntropyTap(")
    runs = {region.name: region.runs for region in step.regions}
    assert runs["block: K tokens from block_input on"] == 6
    assert found.options["keep"] == {3: 0.5, 4: {1: 0.0}, 5: 0.25}


def test_passes_come_with_their_time_and_words(found):
    passes = {done.name: done for done in found.graphs[1].passes}
    assert next(iter(passes)) == "outline_blocks"
    assert passes["token_gather"].layers == [1, 2, 3]
    assert all(done.milliseconds > 0 and done.rewrites and done.price for done in passes.values())


def test_gates_and_their_fire_rates(found):
    (run,) = found.generations
    fired = {(gate.gate, gate.layer): (gate.asked, gate.fired) for gate in run.gates}
    assert fired["ScaleDepthGate", 1] == (5, 3)
    assert fired["ScaleDepthGate", 2] == (5, 2)
    assert fired["LayerSkipGate", 1] == (3, 1)
    assert fired["TokenGate", 1] == (2, 2)
    assert ("ScaleDepthGate", 0) not in fired
    assert sum(count for (gate, _), (_, count) in fired.items() if gate == "EntropyTap") == 3


def test_kept_tokens_and_budgets(found):
    (run,) = found.generations
    kept = {(row.scale, row.layer): (row.kept, row.tokens) for row in run.runs}
    assert kept[4, 1] == (0, 36)
    assert kept[5, 2] == (16, 64)
    assert kept[5, 0] == (64, 64)
    last = run.scales[5]
    assert (last.kept, last.tokens) == (64 + 3 * 16, 4 * 64)
    assert sum(scale.flops for scale in run.scales) == run.flops
    assert sum(scale.flops_dense for scale in run.scales) == run.flops_dense > run.flops


def test_recompiles_have_a_reason(found):
    (frame,) = found.recompiles
    assert frame.compilations == 2
    assert len(frame.reasons) == 1
    assert found.graphs[0].recompiled_because is None
    assert "end == 1" in frame.reasons[0]


def test_a_fallback_has_node_source_line_and_advice(found):
    (fallback,) = found.fallbacks
    assert (fallback.reason, fallback.expected, fallback.graph) == ("ONE_TOKEN", True, 0)
    assert fallback.source.startswith("prenorm.py:")
    assert fallback.node
    assert "nothing to prune" in fallback.advice


def test_the_text_says_it_all(found):
    text = str(found)
    assert text.startswith("PreNorm: 2 graphs, 4 of 4 layers can be pruned, ")
    lines = [line.split() for line in text.splitlines()]
    assert ["1", ".", "100%", "100%", "50%", "skip", "25%"] in lines
    assert ["TokenGate", "1-3", "6", "6", "100%"] in lines
    assert any(line[:2] == ["token_gather", "1-3"] for line in lines)
    assert "end == 1" in text
    assert "advice: a scale of one token" in text


def test_the_json_survives_a_round_trip(found):
    values = found.to_json()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["graphs"][1]["passes"][4]["name"] == "token_gather"
    assert "before" not in values["graphs"][1]["passes"][4]
    assert "output" not in values


def test_what_stays_dense_is_counted_and_explained(fresh_dynamo):
    subject = odd.OddSubject(odd.NoAttention)
    with MANY_GRAPHS, pytest.warns(RuntimeWarning, match="prunable graph"):
        forward = torch.compile(subject.model, backend="toprovar", options={"lowering": "eager"})
        with toprovar_fx.explaining() as report:
            generate(subject, forward)
    serious = [fallback for fallback in report.fallbacks if not fallback.expected]
    assert {fallback.reason for fallback in serious} == {"NO_ATTENTION"}
    assert "none of them can be pruned" in str(report)
    assert "Stays dense" in str(report)


class Step(torch.nn.Module):
    """Something that is no scale step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() + 1


def test_a_module_is_compiled_and_called(fresh_dynamo):
    x = torch.randn(2, 3, requires_grad=True)
    report = toprovar_fx.explain(Step(), x, options={"lowering": "eager"})
    assert torch.equal(report.output, x.relu() + 1)
    assert not report.output.requires_grad
    (graph,) = report.graphs
    assert graph.kind == "dense"
    assert report.fallbacks[0].reason == "NO_ATTENTION"
    assert "no generation was open" in str(report)


def test_a_function_with_keywords(fresh_dynamo):
    def double(x: torch.Tensor, *, times: int) -> torch.Tensor:
        return x * times

    report = toprovar_fx.explain(double, torch.ones(2), options={"lowering": "eager"}, times=2)
    assert report.output.tolist() == [2, 2]
    assert report.model == "double"


@pytest.mark.filterwarnings("ignore:toprovar. scales:RuntimeWarning")  # the scales before were left out
@pytest.mark.filterwarnings("ignore:toprovar. scales:RuntimeWarning")  # those before were left out
def test_a_scale_step_inside_a_generation_is_pruned(fresh_dynamo):
    subject = TinyPreNorm(True, False)
    state = subject.state(1, SQUARE)
    arguments = subject.arguments(subject.hidden(1, 2, SQUARE), state, SQUARE.ends[2])
    options = {**OPEN, "lowering": "eager", "keep": {2: 0.5}, "restore": "residual", "score": "random"}
    with toprovar_fx.generation(SQUARE) as run:
        run.begin_scale(2)
        report = toprovar_fx.explain(subject.model, *arguments, options=options)
    assert {row.layer: row.kept for row in report.generations[0].runs} == {0: 9, 1: 5, 2: 5, 3: 5}
    assert not hasattr(arguments[0], "_dynamo_weak_dynamic_indices"), "the caller's tensors are left alone"
    assert "not run" in str(report)
    assert not hasattr(arguments[0], "_dynamo_weak_dynamic_indices"), "the caller's tensors are left alone"
    assert "not run" in str(report)


def test_what_is_compiled_already_is_called_as_it_is(fresh_dynamo):
    compiled = torch.compile(Step(), backend="toprovar", options={"lowering": "eager", "tau": 0.7})
    compiled(torch.ones(2))
    report = toprovar_fx.explain(compiled, torch.ones(2))
    assert report.model == "Step"
    assert report.options["tau"] == 0.7
    assert [graph.calls for graph in report.graphs] == [1]
    with pytest.raises(OptionError, match="compiled with options of its own"):
        toprovar_fx.explain(compiled, torch.ones(2), options={"tau": 0.5})


def test_bad_input_is_refused():
    with pytest.raises(OptionError, match="expected a module, a function or a pipeline"):
        toprovar_fx.explain(3)
    with pytest.raises(OptionError, match="nearest valid: tau"):
        toprovar_fx.explain(Step(), torch.ones(2), options={"tua": 0.5})


def test_nothing_compiled_is_said_loudly():
    with toprovar_fx.explaining("eager model") as report:
        Step()(torch.ones(2))
    assert str(report).startswith("eager model: no graph of this backend took part")


def test_graph_breaks_are_counted(fresh_dynamo):
    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    report = toprovar_fx.explain(broken, torch.ones(2), options={"lowering": "eager"})
    assert sum(report.graph_breaks.values()) == 1
    assert "Graph breaks" in str(report)


def test_reports_of_two_watchers_do_not_mix(fresh_dynamo):
    with toprovar_fx.explaining() as outer:
        inner = toprovar_fx.explain(Step(), torch.ones(2), options={"lowering": "eager"})
    assert len(inner.graphs) == 1
    assert outer.graphs == []
