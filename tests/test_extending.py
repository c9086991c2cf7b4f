"""Scores and passes of one's own: the examples of docs/extending.md, and what is refused."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toprovar_fx
from toprovar_fx.criteria.score_registry import SCORES, Score
from toprovar_fx.declaration import PASSES
from toprovar_fx.errors import ExtensionError, OptionError
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.options import Options
from toprovar_fx.passes.context import PassContext
from toprovar_fx.passes.pipeline import ordered, rewrite_step
from toprovar_fx.passes.step import PassRecord, PassResult
from toprovar_fx.runtime.verify import PermutationCheck

from .models.fixtures import traced
from .models.subjects import MANY_GRAPHS, OPEN, TinyPreNorm, generate, identical

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
SCHEDULE = toprovar_fx.Schedule(tuple((side, side) for side in (1, 2, 3, 4, 6)))
NAME = "prenorm-fused-rope"


@pytest.fixture(autouse=True)
def fresh_names() -> Iterator[None]:
    """Names do not outlive a test."""
    yield
    for registry in (SCORES, PASSES):
        for name in [name for name in registry if not registry.is_built_in(name)]:
            registry.remove(name)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, fresh_dynamo: None) -> None:
    """`from_pretrained` gives a model of four narrow layers, so that the examples take seconds."""

    def load(name: str) -> toprovar_fx.InfinityPipeline:
        whole = toprovar_fx.InfinityPipeline.untrained(name, device="cpu")
        config = replace(CONFIGS["scenes"], depth=4, width=64, heads=2)
        return toprovar_fx.InfinityPipeline(Infinity(config).eval(), whole.vae, whole.text_encoder, SCHEDULE)

    monkeypatch.setattr(toprovar_fx.InfinityPipeline, "from_pretrained", load)


def run_example(source: str) -> dict[str, object]:
    assert len(source.splitlines()) <= 45
    space: dict[str, object] = {"__name__": "example"}
    with MANY_GRAPHS:
        exec(compile(source, str(PAGE), "exec"), space)
    return space


def test_the_page_has_both_examples():
    assert [
        "@toprovar_fx.register_" + kind in text
        for text, kind in zip(EXAMPLES, ("score", "pass"), strict=True)
    ]


def test_the_score_of_the_page(small, capsys):
    space = run_example(EXAMPLES[0])
    report = space["report"]
    assert report.options["score"] == "edges"
    (run,) = report.generations
    pruned = [row for row in run.runs if row.arm == "pruned"]
    assert pruned and all(row.kept < row.tokens for row in pruned)
    # It asked for entropies, so some were measured.
    assert any(row.arm == "tapped" for row in run.runs)
    assert "TokenGate" in capsys.readouterr().out


def test_the_pass_of_the_page(small, capsys):
    report = run_example(EXAMPLES[1])["report"]
    (run,) = report.generations
    last = {row.layer: row.arm for row in run.runs if row.scale == len(SCHEDULE) - 1}
    assert [last[layer] for layer in (1, 3)] == ["skipped"] * 2
    assert "skipped" not in (last[0], last[2])
    assert not any(row.arm == "skipped" for row in run.runs if row.scale < len(SCHEDULE) - 1)
    (step,) = [graph for graph in report.graphs if graph.kind == "scale step"]
    own = {done.name: done.layers for done in step.passes}
    assert own["odd_layers"] == [1, 3]
    assert list(own)[-2:] == ["odd_layers", "graph_gate"]
    assert step.passes[-2].rewrites == "Odd layers: not run at the last scale (`LastScaleGate`)."
    assert {gate.fired for gate in run.gates if gate.gate == "LastScaleGate"} == {1}
    changed = [done.name for _, done, _, after in report.changes() if "LastScaleGate" in str(after)]
    assert changed == ["odd_layers"]
    assert "LastScaleGate" in capsys.readouterr().out


def constant(value: float):
    def score(hidden, entropy, context):
        return torch.full(hidden.shape[:2], value)

    return score


def scored(score: str) -> object:
    return traced(NAME)({**OPEN, "keep": {4: 0.5, 5: 0.25}, "score": score})


def test_a_score_of_the_same_values_gives_the_same_result():
    @toprovar_fx.register_score("again", keep="high")
    def again(hidden, entropy, context):
        assert (context.layers, context.scales, context.images) == (4, 6, 1)
        assert context.side[0] * context.side[1] == hidden.shape[1]
        assert entropy is None
        return (hidden - hidden.mean(1, keepdim=True)).square().sum(-1)

    assert identical(scored("again").logits, scored("frequency").logits)
    assert not identical(scored("again").logits, scored("random").logits)


@pytest.mark.parametrize("keep", ["low", "high"])
def test_the_direction_of_a_score(keep):
    @toprovar_fx.register_score("position", keep=keep)
    def position(hidden, entropy, context):
        return torch.arange(hidden.shape[1]).expand(hidden.shape[:2])

    kept = scored("position").keeps[5, 1][0].tolist()
    assert kept == (list(range(16)) if keep == "low" else list(range(48, 64)))


@pytest.mark.parametrize("unit", ["block", "step"])
def test_a_score_of_the_place_alone_runs_as_a_whole_step(unit):
    seen = []

    @toprovar_fx.register_score("columns", keep="low", reads_hidden=False)
    def columns(hidden, entropy, context):
        seen.append(bool(hidden.isnan().all()))
        return (torch.arange(hidden.shape[1]) % context.side[1]).expand(hidden.shape[:2])

    found = traced(NAME)({**OPEN, "keep": {4: 0.5, 5: 0.25}, "score": "columns", "unit": unit})
    assert found.keeps[5, 1][0].tolist() == [8 * row + at for row in range(8) for at in (0, 1)]
    assert seen and all(seen), "values of the hidden state were there to be read"
    assert not found.controller.ledger.notes


def test_a_score_that_reads_what_it_said_it_does_not():
    @toprovar_fx.register_score("dishonest", reads_hidden=False)
    def dishonest(hidden, entropy, context):
        return hidden.square().sum(-1)

    with pytest.raises(ExtensionError, match="finite and not negative"):
        scored("dishonest")


def test_a_score_that_cannot_tell_leaves_the_layer_whole():
    toprovar_fx.register_score("unknown")(lambda hidden, entropy, context: None)
    assert scored("unknown").counts(5) == [64, 64, 64, 64]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda hidden, entropy, context: hidden,
            r"returned \(2, 36, 32\): expected .* of shape \(2, 36\)",
        ),
        (lambda hidden, entropy, context: 1.0, r"returned float: expected a tensor"),
        (constant(-1.0), "layer 1, scale 4: expected values that are finite and not negative"),
        (constant(float("nan")), "finite and not negative"),
        (lambda hidden, entropy, context: hidden[..., 0].to(torch.complex64), "expected real numbers"),
    ],
)
def test_a_score_that_returns_something_else(function, message):
    toprovar_fx.register_score("wrong")(function)
    with pytest.raises(ExtensionError, match=message):
        scored("wrong")


@pytest.mark.parametrize("inference", [True, False])
def test_a_score_cannot_change_what_its_layer_reads(inference):
    def careless(hidden, entropy, context):
        return hidden.square_()[..., 0]

    score = Score("careless", careless, "low", False, "")
    with torch.inference_mode(inference):
        hidden = torch.full((2, 4, 8), 3.0)
        if inference:
            score.statistic(hidden, None, None)
            assert bool((hidden == 3).all())
        else:
            with pytest.raises(ExtensionError, match="wrote to hidden"):
                score.statistic(hidden, None, None)


def test_what_is_no_function_is_not_registered():
    for register in (toprovar_fx.register_score, toprovar_fx.register_pass):
        with pytest.raises(OptionError, match="'mine' is 3: expected a function"):
            register("mine")(3)
    assert "mine" not in SCORES and "mine" not in PASSES


def test_unknown_names_get_the_nearest():
    toprovar_fx.register_score("texture")(constant(1.0))
    with pytest.raises(OptionError, match=r"expected one of 'entropy', .*; nearest valid: 'texture'"):
        Options(score="textur")
    with pytest.raises(OptionError, match="none is registered"):
        Options(passes=("mine",))
    toprovar_fx.register_pass("mine")(lambda step, options, context: None)
    with pytest.raises(OptionError, match=r"passes='mini'.*nearest valid: 'mine'"):
        Options(passes=("mini",))


def test_names_are_taken_once():
    toprovar_fx.register_score("mine")(constant(1.0))
    for name in ("mine", "entropy"):
        with pytest.raises(OptionError, match="is registered already"):
            toprovar_fx.register_score(name)(constant(1.0))
    with pytest.raises(OptionError, match="expected a Python identifier"):
        toprovar_fx.register_score("my score")(constant(1.0))
    with pytest.raises(OptionError, match="'low' or 'high'"):
        toprovar_fx.register_score("other", keep="lo")
    with pytest.raises(OptionError, match="is registered already"):
        toprovar_fx.register_pass("token_gather")
    with pytest.raises(OptionError, match="nearest valid: 'token_gather'"):
        toprovar_fx.register_pass("mine", after="token_gathr")
    toprovar_fx.unregister_score("mine")
    with pytest.raises(OptionError, match="'mine'"):
        toprovar_fx.unregister_score("mine")
    with pytest.raises(OptionError):
        toprovar_fx.unregister_score("entropy")


def test_options_that_mean_other_functions_are_not_equal():
    toprovar_fx.register_score("mine")(constant(1.0))
    first = Options(score="mine")
    assert first == Options(score="mine") == pickle.loads(pickle.dumps(first)) == copy.deepcopy(first)
    toprovar_fx.unregister_score("mine")
    toprovar_fx.register_score("mine")(constant(2.0))
    second = Options(score="mine")
    assert first != second
    assert first.as_dict() == second.as_dict()


def test_a_name_that_was_registered_anew_is_not_mixed_up(fresh_dynamo):
    """Dynamo takes the code that was compiled under the same text of the options."""
    toprovar_fx.register_score("mine")(constant(1.0))
    subject = TinyPreNorm(True, True, depth=2)
    options = {**OPEN, "lowering": "eager", "keep": {5: 0.5}, "score": "mine"}
    with MANY_GRAPHS:
        forward = torch.compile(subject.model, backend="toprovar", options=options)
        first = generate(subject, forward)
        toprovar_fx.unregister_score("mine")
        assert identical(generate(subject, forward).logits, first.logits), "what was compiled keeps its score"
        toprovar_fx.register_score("mine")(constant(1.0))
        again = torch.compile(subject.model, backend="toprovar", options=options)
        with pytest.raises(ExtensionError, match=r"registered anew.*torch\.compiler\.reset"):
            generate(subject, again)
        torch.compiler.reset()
        assert identical(generate(subject, again).logits, first.logits)


def test_a_score_that_reads_entropies_cannot_rank_within_the_graph():
    toprovar_fx.register_score("mine", reads_entropy=True)(constant(1.0))
    with pytest.raises(OptionError, match="expected score='entropy' with entropy_source='same_layer'"):
        Options(preset="criterion", score="mine", entropy_source="same_layer")


def idle(name: str):
    return lambda step, options, context: PassResult(step, PassRecord(name))


def test_the_order_of_passes():
    for name, after in (("b", "outline_blocks"), ("a", "token_gather"), ("c", "token_gather"), ("d", "a")):
        toprovar_fx.register_pass(name, after=after)(idle(name))
    names = [run.name for run in ordered(Options(passes=("d", "c", "a", "b")))]
    assert names[0] == "b"
    assert names[names.index("token_gather") + 1 :] == ["c", "a", "d", "layer_skip", "graph_gate"]
    with pytest.raises(OptionError, match="expected 'a' too, after which 'd' runs"):
        ordered(Options(passes=("d",)))


def apply(function, name: str = "mine") -> None:
    toprovar_fx.register_pass(name)(function)
    options = Options(preset="lossless", passes=(name,))
    rewrite_step(traced(NAME).dynamic, options, PassContext("eager", PermutationCheck("never")))


def in_place(step, options, context):
    step.graph.add_submodule(step.sites[0].name, torch.nn.Identity())
    return PassResult(step, PassRecord("mine"))


def in_its_graph(step, options, context):
    """Nobody called `recompile`, so that the module's code is what it was."""
    node = next(node for node in step.graph.graph.nodes if node.op == "call_module")
    node.args = (*node.args[1:], node.args[0])
    return PassResult(step, PassRecord("mine"))


def silent(step, options, context):
    changed = step.with_modules({step.sites[1].name: torch.nn.Identity()})
    return PassResult(changed, PassRecord("mine", True, [0]))


def shorter(step, options, context):
    return PassResult(replace(step, sites=step.sites[1:]), PassRecord("mine", True, [0]))


def rewired(step, options, context):
    changed = step.with_modules({})
    output = changed.graph.graph.output_node()
    first = next(iter(changed.graph.graph.nodes))
    output.args = ((*output.args[0], first),)
    return PassResult(changed, PassRecord("mine", True))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda step, options, context: None, "returned NoneType: expected a PassResult"),
        (in_place, "changed the step that it was given"),
        (in_its_graph, "changed the step that it was given"),
        (silent, r"rewrote the layers \[1\] without recording them"),
        (shorter, "changed the list of layers"),
        (rewired, "changed the inputs or outputs"),
        (idle("other"), "named its record 'other'"),
        (lambda step, options, context: PassResult(step, PassRecord("mine", True)), "set modified=True"),
        (
            lambda step, options, context: PassResult(step.with_modules({}), PassRecord("mine", True, [9])),
            r"recorded the layers \[9\]: expected some of 0 to 3",
        ),
        (lambda step, options, context: PassResult(step, PassRecord("mine", False, [1])), "as it was"),
    ],
)
def test_a_pass_that_breaks_an_obligation(function, message):
    with pytest.raises(ExtensionError, match=message):
        apply(function)


def test_a_pass_that_keeps_them():
    apply(lambda step, options, context: PassResult(step.with_modules({}), PassRecord("mine", True)))
