"""Proof: with `gate="graph"` the graphs decide as the host does, and nobody reads a value back meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.errors import GraphError
from toprovar_fx.options import Options
from toprovar_fx.policies.graph_support import GraphGates, graph_gates
from toprovar_fx.runtime.controller import Controller
from toprovar_fx.runtime.gates import ScaleDepthGate
from toprovar_fx.runtime.generation import Generation
from toprovar_fx.runtime.graph_gate import GraphGate
from toprovar_fx.runtime.selecting_gate import SelectingGate

from .models.fixtures import NAMES, traced
from .models.subjects import MANY_GRAPHS, OPEN, SQUARE, WIDE, Outcome, TinyPreNorm, generate, identical
from .side_by_side import in_threads

KEEP = {**OPEN, "keep": {3: 0.5, 4: {1: 0.25, 3: 0.6}, 5: {1: 0.0, 2: 0.5, 3: 0.3}}}
TOKENS = [
    {},
    {"score": "frequency"},
    {"entropy_source": "previous_layer", "keep_low": False},
    {"entropy_source": "previous_scale", "restore": "residual"},
    {"entropy_source": "previous_scale", "ranking_depth": 0.4, "cfg_rows": "per_row"},
    {"pruned_kv": "keep", "cfg_rows": "cond", "entropy_keys": "scale"},
    {"entropy_source": "same_layer"},
]
# One K per scale; how much is pruned and skipped differs from layer to layer and from model to model.
ONE = {
    **OPEN,
    "entropy_source": "dense_layer",
    "buckets": (0.5,),
    "min_scale": 2,
    "alpha_min": 0.5,
    "tau": 0.3,
}
BRANCHES = [
    {},
    {"tau": 0.47, "score": "frequency"},
    {"tau": 0.47, "depth_layers": "all", "batch_rule": "max", "layer_skip_below": 0.3},
    {"layer_skip_below": 0.35, "restore": "residual", "cfg_rows": "per_row", "normalise": "rank"},
    {"layer_skip_below": 0.35, "pruned_kv": "keep", "entropy_keys": "scale"},
    {"layer_skip_below": 0.4, "prune_tokens": False, "scope_of": "tokens"},
    {"depth": "fixed", "depth_scale": 3, "layer_skip_below": 0.3, "layer_scope": "off"},
    {"depth_compare": "le", "tau": 0.5, "buckets": (0.25,), "layer_skip_below": 0.3},
    {"depth_compare": "le", "tau": 0.4, "score": "frequency"},
    {"alpha_min": 0.3, "tau": 0.2, "layer_skip_below": 0.45},
    {"prune_scales": False, "min_scale": 3, "alpha_min": 0.4, "min_keep": 0.3},
]


def both(name: str, options: dict[str, object], **given) -> tuple[Outcome, Outcome]:
    """The same generation with the gates on the host and in the graph."""
    return traced(name)(options, **given), traced(name)({**options, "gate": "graph"}, **given)


def check_same(host: Outcome, graph: Outcome) -> None:
    """Equal bit for bit, with equal decisions."""
    assert identical(host.logits, graph.logits)
    left, right = host.controller.ledger, graph.controller.ledger
    assert [(r.scale, r.layer, r.kept, r.tokens) for r in left.runs] == [
        (r.scale, r.layer, r.kept, r.tokens) for r in right.runs
    ]
    # A protected layer is tapped where it might be needed; what the others did is the same.
    assert [r.arm for r in left.runs if r.layer] == [r.arm for r in right.runs if r.layer]
    assert (left.depth, left.rho, left.detail) == (right.depth, right.rho, right.detail)
    assert left.keep_sets.keys() == right.keep_sets.keys()
    assert all(torch.equal(keep, right.keep_sets[place]) for place, keep in left.keep_sets.items())
    assert not left.fallbacks and not right.fallbacks


def gates(outcome: Outcome, name: str) -> set[type]:
    """Classes of the gates of the program that ran."""
    made = traced(name).programs.items()
    program = next(p for (_, own), p in made if own == outcome.controller.options and p.regions[1:])
    return {type(module) for site in program.step.sites for module in program.step.module(site).modules()}


@pytest.mark.parametrize("options", TOKENS, ids=str)
@pytest.mark.parametrize("name", NAMES[:3])
def test_tokens_chosen_in_the_graph(name, options):
    host, graph = both(name, {**KEEP, **options})
    check_same(host, graph)
    assert graph.counts(5)[1:] == [0, 32, 20]
    assert (SelectingGate in gates(graph, name)) == (options.get("entropy_source") != "same_layer")
    assert GraphGate not in gates(graph, name)


def crossed() -> Iterator[object]:
    """Every setting in both models, and with one and two images; all of these together by night."""
    for at, options in enumerate(BRANCHES):
        for (model, name), images in product(enumerate(("infinity", "prenorm-fused-rope")), (1, 2)):
            marks = [pytest.mark.nightly] if (at + model + images) % 2 else []
            yield pytest.param(name, options, images, id=f"{name}-{options}-{images}", marks=marks)


@pytest.mark.parametrize(("name", "options", "images"), crossed())
def test_branches_chosen_in_the_graph(name, options, images):
    host, graph = both(name, {**ONE, **options}, images=images)
    check_same(host, graph)
    found = gates(graph, name)
    assert GraphGate in found
    assert graph.controller.branching is not None


def test_the_settings_above_see_every_branch_and_depth():
    """Otherwise the comparisons prove little: D is crossed midway, and all three branches run after it."""
    seen, depths, mixed = set(), set(), 0
    for name in ("infinity", "prenorm-fused-rope"):
        for options in BRANCHES:
            outcome = traced(name)({**ONE, **options, "gate": "graph"}, images=2)
            depth = outcome.controller.depth
            depths.add(depth)
            runs = outcome.controller.ledger.runs
            past = [run for run in runs if depth is not None and run.scale > depth and run.layer]
            seen |= {run.arm for run in past}
            mixed += any(len({run.arm for run in past if run.scale == scale}) > 1 for scale in range(6))
    assert {"dense", "pruned", "skipped"} <= seen
    assert {2, 3, None} < depths
    assert mixed


def test_another_resolution(name="prenorm-fused-rope"):
    options = {**ONE, "layer_skip_below": 0.35, "min_scale": 1}
    for schedule in (WIDE, SQUARE.first(5)):
        check_same(*both(name, options, schedule=schedule, images=2))


def test_an_interrupted_generation_leaves_nothing():
    model, options = traced("prenorm-fused-rope"), {**ONE, "layer_skip_below": 0.35, "gate": "graph"}
    before = model(options)
    for scale in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            model(options, fail_at=scale)
    check_same(before, model(options))


def test_threads():
    torch.compiler.reset()
    subjects = [TinyPreNorm(True, True), TinyPreNorm(False, False), TinyPreNorm(True, True)]
    settings = [{**ONE, "layer_skip_below": 0.35}, {**ONE, "score": "frequency"}, KEEP]
    with MANY_GRAPHS:
        pairs = []
        for subject, options in zip(subjects, settings, strict=True):
            given = {**options, "gate": "graph", "lowering": "eager"}
            pairs.append((subject, torch.compile(subject.model, backend="toprovar", options=given)))
        alone = [generate(subject, forward) for subject, forward in pairs]
        for together, before in zip(in_threads(pairs), alone, strict=True):
            check_same(before, together)
    torch.compiler.reset()


@pytest.mark.usefixtures("entropies_as_on_a_device")
def test_nothing_is_read_back_before_the_last_scale(monkeypatch):
    """The eager lowering of `torch.cond` asks its predicate, as compiled code does; nothing else asks."""
    model = traced("prenorm-fused-rope")
    options = {**ONE, "layer_skip_below": 0.35, "gate": "graph"}
    expected = model(options)  # the permutation check reads one number, the first time

    def refuse(self: Tensor, *args: object) -> None:
        raise AssertionError("a value was read back")

    for name in ("tolist", "__float__"):
        monkeypatch.setattr(Tensor, name, refuse)
    run: list[Tensor] = []

    def settle(self: Controller) -> None:
        run.append(torch.zeros(()))

    monkeypatch.setattr(Controller, "settle", settle)
    outcome = model(options)
    monkeypatch.undo()
    assert run and identical(outcome.logits, expected.logits)
    with pytest.raises(AssertionError, match="read back"):
        monkeypatch.setattr(Tensor, "tolist", refuse)
        model({**options, "gate": "host"})


REFUSED = [
    ({"preset": "criterion"}, "4 buckets below 1"),
    ({**ONE, "scale_exit": "depth"}, "scale_exit='depth'"),
    ({**ONE, "sampling": "bernoulli"}, "sampling='bernoulli'"),
    ({**ONE, "score": "random"}, "score='random'"),
    ({**ONE, "entropy_source": "previous_scale"}, "entropy_source='previous_scale'"),
    ({**ONE, "protected_layers_first": 0}, "protected_layers_first >= 1"),
    ({**OPEN, "budget": 1.5}, "a budget solves K"),
    ({"policy": "fastvar", "keep": {-1: 0.5}, "score": "frequency"}, "policy='fastvar'"),
    ({"policy": "sparsevar", "min_scale": 3}, "policy='sparsevar'"),
    ({**ONE, "representative_scale": 1.0}, "R is measured at scale 5"),
]


@pytest.mark.parametrize(("options", "detail"), REFUSED, ids=[detail for _, detail in REFUSED])
def test_what_a_graph_cannot_decide_stays_with_the_host(options, detail):
    host, graph = both("prenorm-fused-rope", {**OPEN, **options})
    assert identical(host.logits, graph.logits)
    assert [r.arm for r in host.controller.ledger.runs] == [r.arm for r in graph.controller.ledger.runs]
    (fallback,) = graph.controller.ledger.fallbacks
    assert fallback.reason is Reason.GATE_ON_HOST
    assert detail in fallback.detail
    with pytest.raises(GraphError, match="GATE_ON_HOST"):
        traced("prenorm-fused-rope")({**OPEN, **options, "gate": "graph", "strict": True})


def test_what_options_allow():
    assert graph_gates(Options(preset="lossless")) is GraphGates.NOTHING
    assert graph_gates(Options(preset="balanced")) is GraphGates.TOKENS
    assert graph_gates(Options(preset="fast")) is GraphGates.TOKENS
    assert graph_gates(Options(**ONE)) is GraphGates.BRANCHES


def test_a_generation_does_not_change_sides():
    """Layers of another graph would not know on the host how many rows their caches hold."""
    controller = Controller(Options(**ONE, gate="graph"), Generation(SQUARE, 1))
    controller.branch(True)
    with pytest.raises(GraphError, match="another graph"):
        controller.branch(False)


@pytest.mark.filterwarnings("ignore:toprovar. a graph that could be pruned ran outside:RuntimeWarning")
def test_without_a_generation_everything_is_dense():
    model = traced("prenorm-fused-rope")
    model.options = {"lowering": "eager", **ONE, "gate": "graph"}
    subject = model.subject
    with torch.no_grad(), MANY_GRAPHS:
        state, dense = subject.state(1, SQUARE), subject.state(1, SQUARE)
        for scale in range(6):
            hidden = subject.hidden(1, scale, SQUARE)
            found = model.compiled(*subject.arguments(hidden, state, SQUARE.ends[scale]))
            expected = subject.model(*subject.arguments(hidden, dense, SQUARE.ends[scale]))
            assert torch.equal(found, expected)


def test_host_gates_are_kept_for_generations_that_need_them():
    outcome = traced("prenorm-fused-rope")({**ONE, "representative_scale": 1.0, "gate": "graph"})
    assert {GraphGate, ScaleDepthGate} <= gates(outcome, "prenorm-fused-rope")
    assert outcome.controller.branching is None
