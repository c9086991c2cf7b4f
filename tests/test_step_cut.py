"""A scale step in parts computes what it computes as one, wherever it is cut, and says where it cannot be."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from toprovar_fx.passes.step import BlockGraph, Site, Step
from toprovar_fx.runtime import step_parts
from toprovar_fx.runtime.controller import Controller
from toprovar_fx.runtime.step_cut import StepCut, cut_step
from toprovar_fx.runtime.whole_step import WholeStep

from .models import family_caches as caches
from .models.family_combinations import EVERY_LAYER
from .models.fixtures import NAMES, eager, traced
from .models.subjects import OPEN, SQUARE, generate, identical
from .replayed_steps import Kept, compiled
from .test_families import of
from .test_online_steps import ONLINE, SEEDS
from .test_online_steps import assert_same as assert_same_image
from .test_whole_step import DECIDED, assert_same

LAST_DENSE = {**ONLINE, "entropy_source": "dense_layer"}
CASES = {
    "last dense layer": {},
    "many counts": {"buckets": tuple(at / 64 for at in range(8, 65)), "tau": 0.3},
    "layers may be skipped": {"layer_skip_below": 0.66, "buckets": (0.5, 0.75)},
    "nothing restored, keys kept": {"restore": "residual", "pruned_kv": "keep", "layer_scope": "off"},
    "a map of every image row": {"cfg_rows": "per_row", "batch_rule": "max", "tau": 0.4},
    "the scope of given values": {"layer_scope": "fixed", "scope_values": (0.3, 0.9)},
    "drawn": {"sampling": "bernoulli"},
    "two dense layers": {"protected_layers_first": 2, "protected_layers_last": 1},
}


class Cuts:
    """The cuts that were made, and the parts that ran as one call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[StepCut] = []
        self.steps: list[Step] = []
        self.refused = 0
        self.ran: list[tuple[int, ...]] = []
        run = WholeStep.run

        def counted(step: Step, layer: int) -> StepCut | None:
            cut = cut_step(step, layer)
            if cut is None:
                self.refused += 1
            else:
                self.made.append(cut)
                self.steps.append(step)
            return cut

        def watched(part: WholeStep, *given: object) -> object:
            found = run(part, *given)
            if found is not None:
                self.ran.append(tuple(part._layers))
            return found

        monkeypatch.setattr(step_parts, "cut_step", counted)
        monkeypatch.setattr(WholeStep, "run", watched)


@pytest.fixture
def cuts(monkeypatch) -> Cuts:
    monkeypatch.setattr(traced("infinity"), "programs", {})
    return Cuts(monkeypatch)


def cut_after_every(layers: int) -> Callable[[Controller, int], range]:
    return lambda controller, begin: range(begin, min(begin + layers, controller.layers))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_waits_for_a_layer_of_its_scale_is_two_calls(case, cuts):
    """K of eq. 6 by the map of the last dense layer; bit for bit what the blocks compute one by one."""
    options = {**LAST_DENSE, **case}
    found, expected = (traced("infinity")({**options, "unit": unit}) for unit in ("step", "block"))
    assert_same(found, expected)
    assert not found.controller.ledger.notes
    first = options.get("protected_layers_first", 1)
    assert {tuple(range(first)), tuple(range(first, 4))} <= set(cuts.ran)
    tokens = SQUARE.tokens
    assert any(0 < count < tokens[scale] for scale in (4, 5) for count in found.counts(scale)[first:])


def test_images_in_any_order_share_recordings(recorder, cuts):
    subject = Kept()
    plain, forward = (compiled(subject, LAST_DENSE, unit=unit) for unit in ("block", "step"))
    stood = set()
    for seed in (*SEEDS, 7, 1, 1, 12):
        found, expected = (generate(subject, call, seed=seed) for call in (forward, plain))
        assert_same_image(found, expected)
        assert not found.controller.ledger.notes
        stood.add((found.controller.depth, *(tuple(found.counts(scale)) for scale in range(6))))
    assert len(stood) > 1 and len(cuts.made) == 1
    assert recorder.replays > recorder.records


def test_parts_take_what_they_need_alone(recorder, cuts):
    """A cache that a part does not use would be copied for it at every scale."""
    subject = Kept()
    generate(subject, compiled(subject, LAST_DENSE, unit="step"))
    (cut,), (step,) = cuts.made, cuts.steps
    whole = [node for node in step.graph.graph.nodes if node.op == "placeholder"]
    for part, taken, crossing in ((cut.head, cut.inputs[0], 0), (cut.tail, cut.inputs[1], 1)):
        holders = [node for node in part.graph.graph.nodes if node.op == "placeholder"]
        assert [node.name for node in holders[: len(taken)]] == [whole[at].name for at in taken]
        assert len(holders) == len(taken) + crossing
        tensors = [node for node in holders if isinstance(node.meta["example_value"], Tensor)]
        assert all(node.users for node in tensors)
    assert len(cut.inputs[0]) < len(cut.inputs[1]) < len(whole)


def test_told_counts_are_what_the_host_would_count(recorder, cuts, monkeypatch):
    """The head tells K of the tail in its recording: no plan of a layer is made."""
    subject = Kept()
    forward = compiled(subject, LAST_DENSE, unit="step")
    expected = generate(subject, forward)
    asked: list[object] = []
    monkeypatch.setattr(
        "toprovar_fx.runtime.layer_plans.LayerPlans.plan", lambda self, *given: asked.append(given)
    )
    found = generate(subject, forward)
    assert not asked and [found.counts(scale) for scale in range(6)] == [
        expected.counts(scale) for scale in range(6)
    ]


@pytest.mark.parametrize("layers", [1, pytest.param(3, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ["previous scale", "frequency", "keys kept", "criterion", "bernoulli"])
def test_a_step_cut_anywhere_is_the_step(name, layers, cuts, monkeypatch):
    expected = traced("infinity")({**OPEN, **DECIDED[name]})
    monkeypatch.setattr(Controller, "part_from", cut_after_every(layers))
    found = traced("infinity")({**OPEN, **DECIDED[name], "unit": "step"})
    assert_same(found, expected)
    assert len(cuts.made) == (3 if layers == 1 else 1) and not cuts.refused
    assert not found.controller.ledger.notes


@pytest.mark.parametrize(
    "name", [NAMES[1], *(pytest.param(name, marks=pytest.mark.nightly) for name in NAMES if name != NAMES[1])]
)
def test_a_lossless_step_cut_anywhere_is_the_untouched_model(name, monkeypatch):
    monkeypatch.setattr(Controller, "part_from", cut_after_every(1))
    monkeypatch.setattr(traced(name), "programs", {})
    cuts = Cuts(monkeypatch)
    found = traced(name)({"preset": "lossless", "unit": "step"})
    assert identical(found.logits, eager(name).logits)
    assert cuts.made and not cuts.refused


@pytest.mark.parametrize(
    ("kind", "apart"),
    [
        (caches.Functional, True),
        (caches.Stacked, False),
        pytest.param(caches.Joined, True, marks=pytest.mark.nightly),
        pytest.param(caches.Sliced, True, marks=pytest.mark.nightly),
    ],
)
def test_whatever_the_caches_the_parts_are_the_step(kind, apart, monkeypatch):
    """Caches that grow are results of either part; views of one tensor leave the step whole."""
    model = of(kind)
    options = {**EVERY_LAYER, "score": "entropy", "entropy_source": "previous_scale", "verify": "once"}
    expected = model(options)
    monkeypatch.setattr(Controller, "part_from", cut_after_every(1))
    monkeypatch.setattr(model, "programs", {})
    cuts = Cuts(monkeypatch)
    found = model({**options, "unit": "step"})
    assert identical(found.logits, expected.logits)
    assert found.arms(5) == expected.arms(5)
    assert bool(cuts.made) is apart and bool(cuts.refused) is not apart


# Steps drawn by hand: a block that adds one, one that doubles what it gets and writes a cache.


def block(write: bool = False) -> fx.GraphModule:
    graph = fx.Graph()
    hidden = graph.placeholder("hidden")
    others = [graph.placeholder("other")]
    if write:
        graph.call_function(operator.setitem, (others[0], 0, 5.0))
    graph.output(graph.call_function(torch.add, (hidden, others[0])))
    return fx.GraphModule({}, graph)


def step(between: Callable[[fx.Graph, fx.Node, fx.Node], list[fx.Node]], write: bool = False) -> Step:
    """Two blocks; `between` builds, of the inputs, what the second gets besides, and further results."""
    graph = fx.Graph()
    hidden, other = graph.placeholder("hidden"), graph.placeholder("other")
    early = between(graph, hidden, other)
    first = graph.call_module("block_0", (hidden, other))
    second = graph.call_module("block_1", (first, early[0]))
    graph.output((second, *early[1:]))
    value = torch.zeros(2, 3)
    for node in graph.nodes:
        node.meta["example_value"] = value
    modules = {"block_0": block(write), "block_1": block()}
    sites = tuple(
        Site(layer, name, BlockGraph(module, None)) for layer, (name, module) in enumerate(modules.items())
    )
    return Step(fx.GraphModule(modules, graph), sites)


def run(cut: StepCut, *arguments: Tensor) -> tuple[Tensor, ...]:
    head, tail = (take(arguments) for take in cut.taken)
    crossing = cut.head.graph(*head)
    return cut.results(crossing, cut.tail.graph(*tail, *crossing))


def assert_cut(whole: Step, crossing: int) -> StepCut:
    """It is cut in two that compute the same; so many tensors cross."""
    cut = cut_step(whole, 1)
    assert cut is not None
    given = torch.rand(2, 3), torch.rand(2, 3)
    expected = whole.graph(*(x.clone() for x in given))
    found = run(cut, *(x.clone() for x in given))
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    holders = [node for node in cut.tail.graph.graph.nodes if node.op == "placeholder"]
    assert len(holders) - len(cut.inputs[1]) == crossing
    return cut


def test_what_was_computed_before_crosses():
    cut = assert_cut(step(lambda graph, x, y: [graph.call_function(torch.mul, (x, y))]), crossing=2)
    assert [len(taken) for taken in cut.inputs] == [2, 0]


def test_views_are_made_anew():
    cut = assert_cut(step(lambda graph, x, y: [graph.call_method("view", (y, 2, 3))]), crossing=1)
    assert all(node.target != "view" for node in cut.head.graph.graph.nodes)
    made = step(lambda graph, x, y: [graph.call_method("view", (graph.call_function(torch.neg, (y,)), 2, 3))])
    assert_cut(made, crossing=2)


def test_results_of_the_head_keep_their_places():
    def early(graph: fx.Graph, x: fx.Node, y: fx.Node) -> list[fx.Node]:
        return [y, graph.call_function(torch.neg, (y,)), x, graph.call_function(torch.abs, (x,))]

    cut = assert_cut(step(early), crossing=3)
    assert list(cut.made_by_head) == [1, 3]


def test_a_view_of_what_is_written_since_is_not_made_anew():
    """It might be a copy from before: `contiguous` is one where it has to be."""
    whole = step(lambda graph, x, y: [graph.call_method("contiguous", (y,))], write=True)
    assert cut_step(whole, 1) is None


def test_what_the_tail_writes_to_does_not_cross():
    def early(graph: fx.Graph, x: fx.Node, y: fx.Node) -> list[fx.Node]:
        return [graph.call_function(torch.neg, (y,))]

    whole = step(early)
    assert_cut(whole, crossing=2)
    writes = block(write=True)
    sites = whole.sites[0], Site(1, "block_1", BlockGraph(writes, None))
    assert cut_step(Step(whole.graph, sites), 1) is None


def test_what_is_no_tensor_leaves_the_step_whole():
    def early(graph: fx.Graph, x: fx.Node, y: fx.Node) -> list[fx.Node]:
        pair = graph.call_function(torch.max, (y, 0))
        return [graph.call_function(operator.getitem, (pair, 0)), pair]

    whole = step(early)
    pair = next(node for node in whole.graph.graph.nodes if node.target is torch.max)
    pair.meta["example_value"] = (torch.zeros(3), torch.zeros(3))
    assert cut_step(whole, 1) is None
