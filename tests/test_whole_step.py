"""The unit of a whole step: one graph per scale that computes what its blocks compute one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.errors import OptionError
from toprovar_fx.live_programs import programs
from toprovar_fx.options import Options
from toprovar_fx.program import StepProgram
from toprovar_fx.runtime.report import report_of

from .models.fixtures import NAMES, eager, traced
from .models.subjects import (
    MANY,
    MANY_GRAPHS,
    OPEN,
    SQUARE,
    WIDE,
    Outcome,
    TinyInfinity,
    generate,
    identical,
    worst,
)
from .oracles import replay

BEFORE = {"entropy_source": "previous_scale"}
DECIDED = {
    "lossless": {"preset": "lossless"},
    "previous scale": {"keep": MANY, **BEFORE},
    "one layer ranks all": {"keep": MANY, **BEFORE, "ranking_depth": 0.5},
    "last dense layer": {"keep": MANY, "entropy_source": "dense_layer"},
    "previous layer": {"keep": MANY, "entropy_source": "previous_layer"},
    "frequency": {"keep": MANY, "score": "frequency"},
    "frequency, nothing restored": {"keep": MANY, "score": "frequency", "restore": "residual"},
    "random": {"keep": MANY, "score": "random"},
    "random policy": {"keep": MANY, "policy": "random"},
    "random policy, by frequency": {"keep": MANY, "policy": "random", "score": "frequency"},
    "fastvar": {"policy": "fastvar", "keep": MANY, "scale_exit": None},
    "fastvar, as published": {"policy": "fastvar"},
    "bernoulli": {"keep": MANY, **BEFORE, "sampling": "bernoulli"},
    "keys kept": {"keep": MANY, **BEFORE, "pruned_kv": "keep", "restore": "residual"},
    "exit": {"keep": MANY, **BEFORE, "scale_exit": -1},
    "criterion": {**BEFORE, "min_scale": 2},
    "budget": {"budget": 1.2, **BEFORE, "ranking_depth": 0.5, "min_scale": 2},
}
UNDECIDED = {
    "frequency, bernoulli": (
        {"keep": MANY, "score": "frequency", "sampling": "bernoulli"},
        "score='frequency'",
    ),
    "eq. 6": ({"min_scale": 2, "entropy_source": "previous_layer"}, "K by eq. 6"),
    "own entropies": ({"keep": MANY, "entropy_source": "same_layer"}, "OwnEntropyGate"),
    "sparsevar": ({"policy": "sparsevar", "min_scale": 3}, "policy='sparsevar'"),
    "scope of tokens": ({"scope_of": "tokens", **BEFORE, "min_scale": 2}, "layer scope"),
}


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Equal bit for bit: logits, caches, keep sets, and everything that the ledger holds."""
    assert identical(found.logits, expected.logits)
    assert identical(found.state.keys, expected.state.keys)
    assert identical(found.state.values, expected.state.values)
    ours, theirs = found.controller.ledger, expected.controller.ledger
    assert ours.gates == theirs.gates
    assert ours.deviations.keys() == theirs.deviations.keys()
    assert (ours.depth, ours.rho, ours.detail) == (theirs.depth, theirs.rho, theirs.detail)
    plain = [[replace(run, region=None, dense=None) for run in ledger.runs] for ledger in (ours, theirs)]
    assert plain[0] == plain[1]
    for mine, its in ((ours.keep_sets, theirs.keep_sets), (ours.maps, theirs.maps)):
        assert mine.keys() == its.keys()
        assert all(torch.equal(value, its[place]) for place, value in mine.items())


def both(name: str, options: dict[str, object], **given: object) -> tuple[Outcome, Outcome]:
    settings = {**OPEN, **options}
    return traced(name)({**settings, "unit": "step"}, **given), traced(name)(settings, **given)


def crossed() -> Iterator[object]:
    """Each of the options with either model and either code; with all pairs of them by night."""
    models, codes = ("infinity", "prenorm-separate-absolute"), ("shared", "fused")
    for at, (label, options) in enumerate(DECIDED.items()):
        for (model, name), (kind, code) in product(enumerate(models), enumerate(codes)):
            rare = at > 1 and (at + model + kind) % 2
            marks = [pytest.mark.nightly] if rare else []
            yield pytest.param(name, options, code, id=f"{label}-{name}-{code}", marks=marks)


@pytest.mark.parametrize(("name", "options", "code"), list(crossed()))
def test_a_whole_step_is_its_blocks(name, options, code):
    settings = {**OPEN, **options}
    found = traced(name)({**settings, "unit": "step", "step_code": code})
    expected = traced(name)(settings)
    assert not found.controller.ledger.notes
    assert_same(found, expected)


@pytest.mark.parametrize(
    "given", [{"images": 3}, {"schedule": WIDE}, {"seed": 4}], ids=lambda given: str(given)
)
def test_other_batches_and_resolutions(given):
    for options in (DECIDED["lossless"], {"keep": {-2: 0.5, -1: {1: 0.2, 2: 0.0, 3: 0.4}}, **BEFORE}):
        found, expected = both("infinity", options, **given)
        assert not found.controller.ledger.notes
        assert_same(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_lossless_whole_step_is_the_untouched_model(name):
    found = traced(name)({"preset": "lossless", "unit": "step"})
    assert identical(found.logits, eager(name).logits)


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_generation_is_the_oracles(name):
    found = traced(name)({**OPEN, "keep": MANY, **BEFORE, "unit": "step"}, images=2)
    assert found.arms(4)[1:] == ["pruned", "pruned", "skipped"]
    trace = replay(traced(name).subject, found.keeps, images=2)
    assert worst(found.logits, trace.logits) < 2e-5


@pytest.mark.parametrize(("options", "what"), UNDECIDED.values(), ids=UNDECIDED)
def test_a_step_that_is_not_decided_runs_by_blocks_and_says_why(options, what):
    found, expected = both("infinity", options)
    assert_same(found, expected)
    notes = [why for whys in found.controller.ledger.notes.values() for why in whys]
    assert notes and {why.reason for why in notes} == {Reason.UNDECIDED_STEP}
    assert all(what in why.detail for why in notes)
    report = report_of(found.run)
    assert "UNDECIDED_STEP" in report.table() and not report.fallbacks
    noted = report.to_json()["notes"].values()
    assert sorted({scale for scales in noted for scale in scales}) == list(found.controller.ledger.notes)


@pytest.mark.parametrize(
    ("options", "by_blocks"),
    [
        ({"policy": "sparsevar", "min_scale": 4}, [3, 4, 5]),
        ({"policy": "skipvar"}, []),
    ],
    ids=lambda value: value["policy"] if isinstance(value, dict) else "",
)
def test_what_a_policy_leaves_alone_runs_whole(options, by_blocks):
    """Scales that it neither prunes nor looks at."""
    found, expected = both("infinity", options)
    assert_same(found, expected)
    assert list(found.controller.ledger.notes) == by_blocks


def test_a_wrong_rewrite_runs_dense_and_is_reported(without_table_gather, monkeypatch):
    monkeypatch.setattr(traced("infinity"), "programs", {})
    found = traced("infinity")({**OPEN, "keep": {-2: 0.5, -1: 0.5}, **BEFORE, "unit": "step"})
    assert identical(found.logits, eager("infinity").logits)
    assert {why.reason for why in found.controller.ledger.fallbacks} == {Reason.VERIFICATION}


def test_layers_alike_share_one_graph(monkeypatch):
    """Scales that group their layers alike run one graph: pruned scales here, whatever their K."""
    model = traced("infinity")
    monkeypatch.setattr(model, "programs", {})
    keep = {scale: {1: 0.5, 2: 0.25, 3: 0.25} for scale in (2, 3, 4, 5)}
    options = {"keep": keep, **BEFORE, "ranking_depth": 0.0}
    model({**OPEN, **options, "unit": "step", "step_code": "fused"})
    (step,) = (p for p in model.programs.values() if isinstance(p, StepProgram))
    names = [region.name for region in step.regions if region.name.startswith("whole step")]
    # Scale 1; the scale that leaves maps and updates; pruned and tapped; pruned, the last.
    assert len(names) <= 4, names


HOST_READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select", "equal")


class NoHostReads(TorchDispatchMode):
    """Fails where the host waits for values of the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        assert name not in HOST_READS, f"the host reads a tensor: {name}"
        return func(*args, **(kwargs or {}))


def forbidden(*args, **kwargs):
    raise AssertionError("the host reads a tensor")


def generate_without_reads(monkeypatch, options) -> Outcome:
    """A generation of a step that was traced and checked, whose programs and gates may read nothing back."""
    expected = traced("infinity")(options)
    call = StepProgram.__call__

    def watched(self, *arguments):
        with NoHostReads():
            return call(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StepProgram, "__call__", watched)
        # On a CPU some ways to the host show no operator.
        for way in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
            patch.setattr(torch.Tensor, way, forbidden)
        found = traced("infinity")(options)
    assert identical(found.logits, expected.logits)
    return found


@pytest.mark.usefixtures("entropies_as_on_a_device")
@pytest.mark.parametrize(
    "name", ["lossless", "previous scale", "one layer ranks all", "frequency", "random", "keys kept"]
)
def test_a_decided_generation_reads_nothing_back(name, monkeypatch):
    found = generate_without_reads(monkeypatch, {**OPEN, **DECIDED[name], "unit": "step"})
    assert len(found.logits) == len(SQUARE)


def test_the_audit_sees_a_gate_on_data(monkeypatch):
    with pytest.raises(AssertionError, match="the host reads a tensor"):
        generate_without_reads(monkeypatch, {**OPEN, **DECIDED["criterion"], "unit": "step"})


def test_options_that_would_do_nothing_are_refused():
    with pytest.raises(OptionError, match="cuda_graphs=True: expected unit='step'"):
        Options(cuda_graphs=True)
    with pytest.raises(OptionError, match="step_sizes='static': expected unit='step'"):
        Options(step_sizes="static")
    with pytest.raises(OptionError, match="step_code='fused': expected unit='step'"):
        Options(step_code="fused")


@pytest.fixture(scope="module")
def subject() -> Iterator[TinyInfinity]:
    torch.compiler.reset()
    with MANY_GRAPHS:
        yield TinyInfinity(depth=2)
    torch.compiler.reset()


# Variants: dense and tapped; pruned and tapped; pruned. In `LAST` none is pruned and tapped.
FEW = {"keep": {-2: {1: 0.5}, -1: {1: 0.25}}, **BEFORE, "ranking_depth": 0.0}
LAST = {**FEW, "keep": {-1: {1: 0.25}}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        pytest.param(LAST, "symbolic", id="last scale-symbolic"),
        pytest.param(FEW, "symbolic", id="two scales-symbolic", marks=pytest.mark.nightly),
        pytest.param(FEW, "static", id="two scales-static", marks=pytest.mark.nightly),
    ],
)
def test_inductor_computes_the_same_from_few_compilations(subject, settings, sizes):
    options = {**OPEN, **settings, "unit": "step", "step_sizes": sizes, "step_code": "fused"}
    forward = torch.compile(subject.model, backend="toprovar", options=options)
    found = generate(subject, forward)
    plain = torch.compile(subject.model, backend="toprovar", options={**options, "lowering": "eager"})
    expected = generate(subject, plain)
    pruned = {(len(found.logits) + scale, 1) for scale in settings["keep"]}
    assert found.keeps.keys() == expected.keeps.keys() == pruned
    assert worst(found.logits, expected.logits) < 1e-4
    assert not found.controller.ledger.notes
    (step,) = (p for p in programs(Options.parse(options)) if isinstance(p, StepProgram))
    compiled = {region.name: len(region.compile_seconds) for region in step.regions if region.compile_seconds}
    assert all(name.startswith("whole step") for name in compiled), "a block was compiled by itself"
    if sizes == "symbolic":
        assert set(compiled.values()) == {1}
    with torch.compiler.set_stance("fail_on_recompile"):
        again = generate(subject, forward)
    assert identical(again.logits, found.logits)


@pytest.mark.slow
def test_shared_code_is_the_blocks_compiled_code(subject):
    """Through Inductor too, equal bit for bit, from one compilation per variant of a block."""
    options = {**OPEN, **FEW}
    whole = {**options, "unit": "step"}
    found = generate(subject, torch.compile(subject.model, backend="toprovar", options=whole))
    expected = generate(subject, torch.compile(subject.model, backend="toprovar", options=options))
    assert_same(found, expected)
    (step,) = (p for p in programs(Options.parse(whole)) if isinstance(p, StepProgram))
    compiled = [region for region in step.regions if region.compile_seconds]
    assert all(not region.name.startswith("whole step") for region in compiled)
    assert {len(region.compile_seconds) for region in compiled} == {1}
