"""Cache policies: rows leave the cache between scales, and what is computed is what a plain model would."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from toprovar_fx.analysis.reasons import Reason
from toprovar_fx.cache_policies.hack import HACK
from toprovar_fx.cache_policies.policy import CachePolicy, LayerCache
from toprovar_fx.cache_policies.registry import CACHE_POLICIES
from toprovar_fx.cache_policies.scalekv import ScaleKV
from toprovar_fx.errors import OptionError
from toprovar_fx.options import Options
from toprovar_fx.runtime.compaction import Compaction
from toprovar_fx.runtime.generation import generation
from toprovar_fx.runtime.report import report_of

from .cache_oracle import Replayed, replay_compacted
from .cache_policies import Drawn, Shuffled, registered
from .models import odd, odd_attention
from .models.fixtures import NAMES, eager, traced
from .models.subjects import MANY, MANY_GRAPHS, OPEN, SQUARE, Outcome, generate, identical, worst

TOLERANCE = 2e-5
DENSE = {"preset": "lossless"}
PRUNED = {**OPEN, "keep": MANY, "score": "random"}
PUBLISHED = {"hack": HACK, "scalekv": ScaleKV}


@pytest.fixture(params=PUBLISHED)
def spied(request) -> Iterator[type[CachePolicy]]:
    """A published policy that notes what it was shown and what it kept."""
    kind = PUBLISHED[request.param]

    class Spied(kind):  # type: ignore[misc, valid-type]
        name = "spied"
        shown: dict[tuple[int, int], LayerCache] = {}  # noqa: RUF012 - of this class alone
        chosen: dict[tuple[int, int], Tensor] = {}  # noqa: RUF012
        weights: dict[tuple[int, int], Tensor] = {}  # noqa: RUF012

        def select(self, scale: int, caches: Sequence[LayerCache]) -> Mapping[int, Tensor]:
            found = super().select(scale, caches)
            self.shown.update({(scale, one.layer): one for one in caches})
            # Their keys are views of the cache, which is about to change.
            self.weights.update({(scale, one.layer): one.attention.clone() for one in caches})
            self.chosen.update({(scale, layer): keep for layer, keep in found.items()})
            self.latest = type(self).latest = self
            return found

    with registered(Spied):
        yield Spied


def replayed(name: str, outcome: Outcome, stay: Mapping[tuple[int, int], Tensor], images: int) -> Replayed:
    settings = outcome.controller.options
    return replay_compacted(
        traced(name).subject,
        stay,
        outcome.keeps,
        images=images,
        where="query" if settings.pruned_kv == "keep" else "input",
        restore=settings.restore,
    )


def stays(outcome: Outcome) -> dict[tuple[int, int], int]:
    return {place: stay for place, (_, stay) in outcome.controller.ledger.cached_rows.items()}


# Any policy.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", PUBLISHED)
def test_a_whole_budget_is_the_dense_model_bit_for_bit(name, policy):
    outcome = traced(name)({**DENSE, "cache_policy": policy, "cache_budget": 1.0, "strict": True})
    assert identical(outcome.logits, eager(name).logits)
    assert outcome.controller.ledger.cached_rows == {
        (scale, layer): (SQUARE.ends[scale],) * 2 for scale in range(1, 5) for layer in range(4)
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_cached_rows_does_not_matter(name):
    with registered(Shuffled):
        outcome = traced(name)({**DENSE, "cache_policy": Shuffled.name, "strict": True})
    assert worst(outcome.logits, eager(name).logits) < TOLERANCE
    assert not identical(outcome.logits, eager(name).logits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [DENSE, PRUNED, {**PRUNED, "pruned_kv": "keep", "restore": "residual"}],
    ids=["whole", "pruned", "keys kept"],
)
def test_a_subset_equals_the_plain_reference(name, options):
    with registered(Drawn):
        outcome = traced(name)({**options, "cache_policy": Drawn.name}, images=2)
        found = replayed(name, outcome, Drawn.chosen, 2)
    assert worst(outcome.logits, found.logits) < TOLERANCE
    assert stays(outcome) == {place: found.cached[place] for place in stays(outcome)}
    assert worst(outcome.logits, eager(name, 2).logits) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {**OPEN, "keep": MANY, "entropy_source": "previous_scale", "score": "entropy"},
        {**OPEN, "keep": MANY, "entropy_source": "same_layer", "score": "entropy"},
        pytest.param({"preset": "criterion"}, marks=pytest.mark.nightly),
        {**OPEN, "policy": "sparsevar", "min_scale": 3},
    ],
    ids=["previous scale", "same layer", "criterion", "sparsevar"],
)
def test_every_way_to_prune_tokens_goes_on_over_a_shorter_cache(options):
    """Two runs of one seed agree, fewer rows cost fewer FLOPs, and the count of rows adds up."""
    whole = traced("infinity")(options, images=2)
    outcome = traced("infinity")({**options, "cache_policy": "scalekv", "cache_budget": 0.3}, images=2)
    again = traced("infinity")({**options, "cache_policy": "scalekv", "cache_budget": 0.3}, images=2)
    assert identical(outcome.logits, again.logits)
    assert report_of(outcome.run).flops < report_of(whole.run).flops
    for (scale, layer), (rows, stay) in outcome.controller.ledger.cached_rows.items():
        ran = [run for run in outcome.controller.ledger.runs if (run.scale, run.layer) == (scale, layer)]
        assert len(ran) == 1 and stay <= rows <= SQUARE.ends[scale]


def test_begin_scale_may_be_called_outside_of_inference_mode():
    """Caches that were made in inference mode cannot be written to outside of it, and the other way round."""
    model, logits = traced("infinity"), []
    with registered(Drawn):
        expected = model({**DENSE, "cache_policy": Drawn.name})
        for made_in in (True, False):
            logits.clear()
            with MANY_GRAPHS, generation(SQUARE, 1) as run:
                with torch.inference_mode(made_in), torch.no_grad():
                    state = model.subject.state(1, SQUARE)
                for scale, end in enumerate(SQUARE.ends):
                    run.begin_scale(scale)
                    with torch.inference_mode():
                        hidden = model.subject.hidden(1, scale, SQUARE)
                        logits.append(model.compiled(*model.subject.arguments(hidden, state, end)))
            assert identical(logits, expected.logits)


@pytest.mark.nightly
def test_compiled_graphs_attend_to_the_rows_that_stay():
    with registered(Drawn):
        outcome = traced("infinity")({**PRUNED, "cache_policy": Drawn.name, "lowering": "inductor"}, images=2)
        found = replayed("infinity", outcome, Drawn.chosen, 2)
    assert "pruned" in outcome.arms(5)
    assert worst(outcome.logits, found.logits) < TOLERANCE


# The published ones.


@pytest.mark.parametrize("options", [DENSE, PRUNED], ids=["whole", "pruned"])
def test_the_published_policies_equal_the_plain_reference(options, spied):
    images, share = 2, 0.4
    outcome = traced("infinity")({**options, "cache_policy": "spied", "cache_budget": share}, images=images)
    found = replayed("infinity", outcome, spied.chosen, images)
    assert worst(outcome.logits, found.logits) < TOLERANCE
    # 16 queries, or all of a scale of fewer, and the softmax that attention itself computes.
    for (scale, layer), weights in spied.weights.items():
        tokens = SQUARE.tokens[scale]
        if outcome.keeps.get((scale, layer)) is not None:
            continue
        grids = {36: _grid(6, (0, 2, 3, 5)), 64: _grid(8, (1, 3, 5, 7))}
        expected = found.attention[scale, layer][:, :, grids.get(tokens, [*range(tokens)])]
        assert torch.allclose(weights, expected, atol=1e-5)
    # The budget is one on average, as soon as more rows were cached.
    budget = share * SQUARE.ends[-2]
    for scale in {scale for scale, _ in spied.chosen}:
        rows = [stay for (at, _), stay in stays(outcome).items() if at == scale]
        assert sum(rows) / len(rows) <= budget
    assert {scale for scale, _ in spied.chosen} == ({3, 4} if options is DENSE else {4})


@pytest.mark.parametrize(("policy", "times"), [("scalekv", 2), ("hack", 1)])
def test_the_device_is_read_once_for_all_layers(monkeypatch, policy, times):
    """At both scales over the budget; what a head is, is known after the first."""
    read: list[int] = []
    end_scale = Compaction.end_scale

    def watched(self: Compaction, scale: int) -> None:
        read.append(0)
        with monkeypatch.context() as patch:
            for way in ("tolist", "item", "__float__", "__int__", "__bool__"):
                patch.setattr(torch.Tensor, way, counted(getattr(torch.Tensor, way)))
            end_scale(self, scale)

    def counted(way: Any) -> Any:
        def call(tensor: torch.Tensor) -> Any:
            read[-1] += 1
            return way(tensor)

        return call

    monkeypatch.setattr(Compaction, "end_scale", watched)
    traced("infinity")({**DENSE, "cache_policy": policy, "cache_budget": 0.4})
    assert [count for count in read if count] == [1] * times


def _grid(side: int, centres: tuple[int, ...]) -> list[int]:
    return [y * side + x for y in centres for x in centres]


@pytest.mark.parametrize("spied", ["scalekv"], indirect=True)
def test_scalekv_keeps_the_watched_rows_and_the_most_attended_ones(spied):
    traced("infinity")({**DENSE, "cache_policy": "spied", "cache_budget": 0.4}, images=1)
    for place, keep in spied.chosen.items():
        one, mass = spied.shown[place], spied.weights[place].sum(2)
        for row, heads in enumerate(keep.tolist()):
            for head, kept in enumerate(heads):
                score = mass[row, head].tolist()
                pooled = [max(score[max(0, at - 2) : at + 3]) for at in range(len(score))]
                watched = set(one.watched.tolist())
                others = [at for at in range(len(score)) if at not in watched]
                others.sort(key=lambda at, pooled=pooled: (-pooled[at], at))
                assert kept == sorted([*watched, *others[: len(kept) - len(watched)]])
    policy = spied.latest
    for scale, layers in policy.refiners.items():
        kept = {at: spied.chosen[scale, at].shape[2] for at in range(4) if (scale, at) in spied.chosen}
        drafters = set(range(4)) - layers
        assert layers and drafters
        assert max(kept[at] for at in layers) < min(kept.get(at, SQUARE.ends[scale]) for at in drafters)


@pytest.mark.parametrize("spied", ["hack"], indirect=True)
def test_hack_tells_heads_apart_by_their_variance(spied):
    traced("infinity")({**DENSE, "cache_policy": "spied", "cache_budget": 0.4}, images=1)
    first = min(scale for scale, _ in spied.chosen)
    varies = {layer: spied.weights[first, layer].var(2, correction=0).sum(-1).mean(0) for layer in range(4)}
    typical = sum(float(found.sum()) for found in varies.values()) / 8
    kinds = {layer: [float(value) > typical for value in found] for layer, found in varies.items()}
    assert {layer: kind.tolist() for layer, kind in spied.latest.structural.items()} == kinds
    assert {kind for heads in kinds.values() for kind in heads} == {True, False}
    for (scale, layer), keep in spied.chosen.items():
        one, mass = spied.shown[scale, layer], spied.weights[scale, layer].sum(2)
        count = keep.shape[2]
        for row in range(2):
            for head, structural in enumerate(kinds[layer]):
                spread = [at * one.rows // count for at in range(count)]
                order = sorted(range(one.rows), key=lambda at: (-float(mass[row, head, at]), at))
                assert keep[row, head].tolist() == (spread if structural else sorted(order[:count]))
    sizes = {layer: spied.chosen[4, layer].shape[2] for layer in range(4)}
    by_share = sorted(range(4), key=lambda layer: sum(kinds[layer]))
    assert [sizes[layer] for layer in by_share] == sorted(sizes.values())


# What cannot be compacted, and who decides.


class Manual(odd_attention.Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return (q @ k.transpose(-2, -1) * odd_attention.SCALE).softmax(-1) @ v


class ScaledKeys(odd_attention.Cached):
    """What is cached is not what the queries meet."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k * 1.5, v)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (odd_attention.KeyMask, Reason.MASKED_ATTENTION),
        (odd_attention.KeyTable, Reason.MASKED_ATTENTION),
        (Manual, Reason.WHOLE_CACHE),
        (ScaledKeys, Reason.WHOLE_CACHE),
    ],
)
def test_a_cache_that_is_not_understood_stays_whole_with_a_reason(kind, reason):
    torch.compiler.reset()
    subject = odd.OddSubject(kind)
    with MANY_GRAPHS:
        forward = torch.compile(
            subject.model,
            backend="toprovar",
            options={**DENSE, "lowering": "eager", "cache_policy": "scalekv", "cache_budget": 0.2},
        )
        outcome = generate(subject, forward)
    ledger = outcome.controller.ledger
    assert {fallback.reason for fallback in ledger.fallbacks} == {reason}
    assert not ledger.cached_rows
    assert identical(outcome.logits, generate(subject, subject.model).logits)


def test_whole_steps_and_graphs_leave_it_to_the_blocks():
    options = {**OPEN, "keep": MANY, "entropy_source": "previous_scale", "cache_policy": "hack"}
    host = traced("infinity")(options)
    step = traced("infinity")({**options, "unit": "step"})
    assert identical(step.logits, host.logits)
    notes = [why for whys in step.controller.ledger.notes.values() for why in whys]
    assert {why.reason for why in notes} == {Reason.UNDECIDED_STEP}
    assert all("cache_policy='hack'" in why.detail for why in notes)
    graph = traced("infinity")({**options, "gate": "graph"})
    assert identical(graph.logits, host.logits)
    (fallback,) = graph.controller.ledger.fallbacks
    assert fallback.reason is Reason.GATE_ON_HOST and "cache_policy='hack'" in fallback.detail


def test_a_budget_of_flops_counts_the_rows_that_are_gone():
    options = {**OPEN, "score": "random", "budget": 1.5}
    whole = report_of(traced("infinity")(options).run)
    outcome = traced("infinity")({**options, "cache_policy": "scalekv", "cache_budget": 0.2})
    report = report_of(outcome.run)
    assert report.flops <= report.flops_dense / 1.5
    assert report.flops_dense == whole.flops_dense
    kept, before = (sum(run.kept for run in each.runs) for each in (report, whole))
    assert kept > before, "what the cache saves is spent on tokens"


def test_the_report_tells_the_rows():
    outcome = traced("infinity")({**DENSE, "cache_policy": "scalekv", "cache_budget": 0.4})
    report = report_of(outcome.run)
    assert report.flops < report.flops_dense
    rows = json.loads(json.dumps(report.to_json()))["cached_rows"]
    assert [4, 0, *report.cached_rows[4, 0]] in rows
    assert "cache policy scalekv: " in report.table() and f" of {SQUARE.ends[4]} rows" in report.table()
    assert report.cached_rows[4, 0][0] == report.cached_rows[3, 0][1] + SQUARE.tokens[4]
    assert not report_of(traced("infinity")(DENSE).run).cached_rows


def test_errors_name_what_was_expected():
    with pytest.raises(OptionError, match=r"cache_policy='scalkv': .*nearest valid: 'scalekv'"):
        Options(cache_policy="scalkv")
    with pytest.raises(OptionError, match=r"cache_budget=1.5: expected a number from 0 to 1"):
        Options(cache_policy="hack", cache_budget=1.5)
    with pytest.raises(OptionError, match=r"cache_budget=0.5: expected a cache_policy"):
        Options(cache_budget=0.5)
    options = Options(cache_policy="hack", cache_budget=0.5)
    assert Options.parse(json.loads(json.dumps(options.as_dict()))) == options
    assert list(CACHE_POLICIES) == ["none", "hack", "scalekv"]
