"""`guidance_until`: the unconditional rows are left out from a scale on, beside tokens and cached rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toprovar_fx.backend import toprovar
from toprovar_fx.errors import OptionError
from toprovar_fx.options import Options
from toprovar_fx.runtime.generation import generation
from toprovar_fx.runtime.report import report_of

from .cache_oracle import replay_compacted
from .cache_policies import Drawn, registered
from .models.fixtures import traced
from .models.subjects import MANY, MANY_GRAPHS, OPEN, SQUARE, Outcome, identical, worst
from .small_pipelines import PROMPTS, build, plainly

PRUNED = {**OPEN, "keep": MANY, "score": "random"}


def drawn_from(options: dict[str, object], images: int = 2) -> Outcome:
    """A generation whose loop asks which rows to run."""
    model = traced("infinity")
    model.options = {"lowering": "eager", "preset": "criterion", **options}
    logits: list[Tensor] = []
    with MANY_GRAPHS, torch.inference_mode(), generation(SQUARE, images) as run:
        model.subject.use(SQUARE)
        state = model.subject.state(images, SQUARE)
        for scale, end in enumerate(SQUARE.ends):
            assert run.begin_scale(scale)
            hidden, context, cache = model.subject.hidden(images, scale, SQUARE), state.context, state.cache
            if run.conditional_only():
                hidden, context, cache = hidden[:images], context.first(images), cache.first(images)
            logits.append(model.compiled(hidden, context, cache, end))
    return Outcome(logits, run, state)


@pytest.mark.parametrize(
    ("until", "options", "compacts"),
    [(2, {"preset": "lossless"}, False), (2, PRUNED, False), (3, PRUNED, True), (-1, PRUNED, True)],
    ids=["all tokens", "whole caches", "from the middle on", "last scale"],
)
def test_tokens_rows_and_cached_rows_together_equal_the_plain_reference(until, options, compacts):
    """The combination: what is left out on all three axes, in one configuration."""
    with registered(Drawn):
        own = {**options, "guidance_until": until, **({"cache_policy": Drawn.name} if compacts else {})}
        outcome = drawn_from(own)
        found = replay_compacted(
            traced("infinity").subject, Drawn.chosen, outcome.keeps, images=2, conditional_from=until % 6
        )
    assert [len(logits) for logits in outcome.logits] == [4 if scale < until % 6 else 2 for scale in range(6)]
    assert worst(outcome.logits, found.logits) < 2e-5
    assert outcome.controller.ledger.conditional_scales == set(range(until % 6, 6))
    assert not outcome.controller.ledger.fallbacks


@pytest.mark.parametrize(
    "options",
    [
        {"keep": MANY, "entropy_source": "previous_scale"},
        {"keep": MANY, "score": "frequency", "cfg_rows": "per_row"},
        {"prune_from": "at", "min_scale": 2},
    ],
    ids=["previous scale", "per row", "criterion"],
)
def test_whole_steps_graphs_and_blocks_agree(options):
    own = {**OPEN, **options, "guidance_until": 4}
    blocks, steps = drawn_from(own), drawn_from({**own, "unit": "step"})
    assert identical(blocks.logits, steps.logits)
    if "keep" in own:
        assert identical(blocks.logits, drawn_from({**own, "gate": "graph"}).logits)
    keeps = blocks.controller.ledger.keep_sets
    assert {len(keep) for (scale, _), keep in keeps.items() if scale >= 4} == {2}


NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in ("toprovar", "random", "fastvar")]


@pytest.mark.parametrize("policy", [*NIGHTLY, "sparsevar"])
def test_every_policy_leaves_them_out(policy, fresh_dynamo):
    own = {"policy": policy, "guidance_until": -2, "scale_exit": None, "lowering": "eager"}
    pipe = build(SQUARE)
    pipe.transformer = torch.compile(pipe.transformer, backend=toprovar, options=own)
    report = pipe(PROMPTS[:2], seed=3).report
    assert report.controller.ledger.conditional_scales == {4, 5}
    assert report.flops < 0.75 * report.flops_dense
    # Without guidance there is nothing to leave out, and the dense model is what ran.
    plain = pipe(PROMPTS[:2], seed=3, cfg=1.0).report
    assert not plain.controller.ledger.conditional_scales


def test_images_are_those_of_conditional_logits(fresh_dynamo):
    with torch.no_grad():
        expected = plainly(build(SQUARE), PROMPTS[:2], 3)
    pipe = build(SQUARE)
    own = {"preset": "lossless", "guidance_until": 3, "lowering": "eager"}
    pipe.transformer = torch.compile(pipe.transformer, backend=toprovar, options=own)
    assert identical(pipe(PROMPTS[:2], seed=3).bits, expected)


@pytest.mark.parametrize(
    "cache",
    [pytest.param({}, marks=pytest.mark.nightly), {"cache_policy": "scalekv", "cache_budget": 0.3}],
    ids=["whole", "scalekv"],
)
def test_a_budget_is_that_of_the_guided_model(cache):
    """Rows that are left out are saved FLOPs, which are spent on tokens."""
    options = {**OPEN, "score": "random", "budget": 2.0}
    alone = report_of(drawn_from(options).run)
    both = report_of(drawn_from({**options, "guidance_until": -1, **cache}).run)
    assert both.flops_dense == alone.flops_dense
    for report in (alone, both):
        assert report.flops <= report.flops_dense / 2
        assert report.flops > 0.9 * report.flops_dense / 2
    share = [sum(run.kept for run in report.runs) for report in (alone, both)]
    assert share[1] > share[0]


def test_a_loop_that_does_not_ask_is_told():
    with pytest.warns(RuntimeWarning, match="the loop never asked conditional_only"):
        traced("infinity")({**OPEN, "keep": MANY, "guidance_until": 3})


@pytest.mark.parametrize(("until", "first"), [(1, 1), (4, 4), (-1, 5), (-5, 1), (-6, 1), (-9, 1)])
def test_the_first_scale_always_has_all_its_rows(until, first):
    """However far from the end: a shorter schedule may have fewer scales than the option counts."""
    options = Options(guidance_until=until)
    policy = options.deciding(options, SQUARE, 1, None)
    assert [policy.conditional_only(scale) for scale in range(6)] == [scale >= first for scale in range(6)]


def test_errors_name_what_was_expected():
    with pytest.raises(OptionError, match=r"guidance_until=0: .*nearest valid: guidance_until=1"):
        Options(guidance_until=0)
    with pytest.raises(OptionError, match=r"guidance_until='late': expected an integer or None"):
        Options(guidance_until="late")
