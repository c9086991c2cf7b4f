"""Puts one drawn model to the proof: keep all, permute all, keep some, and a reason for what stays dense."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor

from toprovar_fx.analysis.reasons import Fallback, Reason
from toprovar_fx.options import Options
from toprovar_fx.policies import policy as policy_module
from toprovar_fx.policies.layer_plan import LayerPlan, LayerQuestion

from ..models.subjects import Outcome, generate, identical
from ..models.traced import Traced
from .model import STAGES
from .reference import replay
from .sites import Sites, sites_of
from .spec import HIDDEN_MIXERS, CaseSpec
from .subject import DrawnSubject

# Largest deviation relative to the largest value: reordered float32 sums through a few layers.
TOLERANCE = {"eager": 2e-5, "inductor": 1e-4}
# No layer protected: every block of the grammar may be pruned.
OPEN = {"preset": "criterion", "protected_layers_first": 0, "protected_layers_last": 0}


@dataclass
class Verdict:
    """How a case was treated.

    Attributes:
        pruned: layers that ran on chosen rows.
        reasons: by layer that stayed dense, why; None stands for the graph as a whole.
        fallbacks: the same with places and details.
    """

    layers: int
    pruned: set[int] = field(default_factory=set)
    reasons: dict[int | None, set[Reason]] = field(default_factory=dict)
    fallbacks: list[Fallback] = field(default_factory=list)


def judge(case: CaseSpec, lowering: str = "eager") -> Verdict:
    """Run a case in all ways.

    Raises:
        AssertionError: a wrong result, a pruned block that mixes tokens, or a dense one without a reason.
    """
    torch.compiler.reset()
    # Every model is traced anew: Dynamo spends more on its cache of fake results than it gets back.
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        return _judge(case, lowering)


def _judge(case: CaseSpec, lowering: str) -> Verdict:
    subject = DrawnSubject(case)
    traced = Traced(subject, dynamo={"dynamic": False} if case.trace == "static" else {})
    run = Runner(case, subject, traced, lowering)
    with warnings.catch_warnings():
        # Expected where nothing can be pruned; that every such case has a reason is asserted below.
        warnings.filterwarnings("ignore", "toprovar: this generation ran without", RuntimeWarning)
        dense = generate(subject, subject.model, case.images, case.scales)
        run.keep_all(dense)
        verdict = run.permute_all(dense)
        run.keep_some(dense, verdict)
    return verdict


@dataclass
class Runner:
    case: CaseSpec
    subject: DrawnSubject
    traced: Traced
    lowering: str

    def __call__(self, **options: object) -> Outcome:
        given = {**OPEN, "lowering": self.lowering, "seed": self.case.seed, **options}
        return self.traced(given, images=self.case.images, schedule=self.case.scales)

    def keep_all(self, dense: Outcome) -> None:
        """Gates in every layer that let everything through: bit for bit the untouched model."""
        kept = self(keep={scale: 1.0 for scale in range(len(self.case.scales))}, score="random")
        assert {run.arm for run in kept.controller.ledger.runs} <= {"dense"}
        if self.lowering == "eager":
            assert identical(kept.logits, dense.logits), "keep-all differs from eager"
            for name in ("keys", "values"):
                pairs = zip(getattr(kept.state, name), getattr(dense.state, name), strict=True)
                assert all(a is b is None or torch.equal(a, b) for a, b in pairs), f"cached {name} differ"
        else:
            self.compare(kept.logits, dense.logits, "keep-all")

    def permute_all(self, dense: Outcome) -> Verdict:
        """All tokens of every pruned layer in random order; no permutation check of the runtime's own."""
        keep = {scale: 0.5 for scale in range(1, len(self.case.scales))}
        with all_tokens_in_random_order():
            found = self(
                keep=keep, score="random", restore="residual", verify="never", pruned_kv=self.case.pruned_kv
            )
        self.compare(found.logits, dense.logits, "a permutation of all tokens")
        verdict = self.verdict(found)
        mixing = verdict.pruned & self.never_pruned(sites_of(self.traced.graphs))
        assert not mixing, f"layers {mixing} mix tokens and were pruned"
        silent = set(range(verdict.layers)) - verdict.pruned - verdict.reasons.keys()
        assert not silent or None in verdict.reasons, f"layers {silent} stayed dense without a reason"
        return verdict

    def keep_some(self, dense: Outcome, verdict: Verdict) -> None:
        """Some tokens, another number in every layer, against the reference."""
        case = self.case
        by_itself = case.score == "same_layer"
        layers = len(case.blocks)
        last = {layer: 0.3 + 0.15 * layer for layer in range(layers)}
        if case.skip:
            last[layers - 1] = 0.0
        options: dict[str, object] = {
            "keep": {-2: 0.6, -1: last},
            "score": "entropy" if by_itself else case.score,
            "pruned_kv": case.pruned_kv,
            "restore": case.restore,
            "verify": "never" if any("dropout" in block.mixer for block in case.blocks) else "once",
        }
        if by_itself:
            options["entropy_source"] = "same_layer"
        found = self(**options)
        ledger = found.controller.ledger
        assert Reason.VERIFICATION not in {f.reason for f in ledger.fallbacks}, ledger.reasons()
        sites = sites_of(self.traced.graphs)
        keeps = {(scale, sites.layers[site]): keep for (scale, site), keep in found.keeps.items()}
        assert not {layer for _, layer in keeps} & self.never_pruned(sites)
        where = "attention" if by_itself else "query" if case.pruned_kv == "keep" else "input"
        torch.manual_seed(1)
        with torch.inference_mode():
            model, inputs = self.subject.model, self.subject.inputs
            expected = replay(case, model, inputs, keeps, where, case.restore, sites.last_stage)
        self.compare(found.logits, expected.outputs, "a subset")
        if not keeps:
            self.compare(found.logits, dense.logits, "nothing pruned")
        for (scale, site), entropy in ledger.maps.items():
            # Those of pruned layers are measured over the kept tokens alone.
            if (scale, site) not in ledger.keep_sets:
                deviation = abs(float(entropy.mean()) - expected.entropy[scale, sites.layers[site]])
                assert deviation < 1e-4, f"entropy of layer {sites.layers[site]} deviates by {deviation:.1e}"

    def never_pruned(self, sites: Sites) -> set[int]:
        """Layers with a mixer, but for those whose compiled block ends before it, where all tokens are."""

        def is_inside(layer: int) -> bool:
            block = self.case.blocks[layer]
            if block.mixer == "length_factor" and self.case.trace == "static":
                return False  # a number like any other, and that of all tokens
            late = block.mixer in HIDDEN_MIXERS and block.mixer_at == "mlp" and block.branches == "serial"
            last = STAGES.index(sites.last_stage.get(layer, STAGES[-1]))
            return not late or last >= STAGES.index("mlp_sum")

        return {layer for layer in self.case.invalid_layers if is_inside(layer)}

    def verdict(self, found: Outcome) -> Verdict:
        """Layers by the model's own numbers; a block in which no attention was found has no site."""
        ledger, layer_of = found.controller.ledger, sites_of(self.traced.graphs).layers
        pruned = {layer_of[run.layer] for run in ledger.runs if run.arm == "pruned"}
        verdict = Verdict(len(self.case.blocks), pruned, fallbacks=list(ledger.fallbacks))
        for fallback in ledger.fallbacks:
            layer = None if fallback.layer is None else layer_of[fallback.layer]
            verdict.reasons.setdefault(layer, set()).add(fallback.reason)
        return verdict

    def compare(self, found: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
        assert len(found) == len(expected)
        for scale, (left, right) in enumerate(zip(found, expected, strict=True)):
            deviation = float((left.double() - right.double()).abs().amax())
            limit = TOLERANCE[self.lowering] * max(1.0, float(right.abs().amax()))
            assert deviation <= limit, f"{what} deviates by {deviation:.1e} at scale {scale}"


@contextlib.contextmanager
def all_tokens_in_random_order() -> Iterator[None]:
    """Let every plan name all tokens, each row in an order of its own; the gates run them as any subset."""

    def plan(options: Options, ask: LayerQuestion) -> LayerPlan:
        rows, length = ask.hidden.shape[:2]
        source = torch.Generator().manual_seed(ask.place.stream)
        return LayerPlan(1, torch.stack([torch.randperm(length, generator=source) for _ in range(rows)]))

    with mock.patch.object(policy_module, "plan_layer", plan):
        yield
