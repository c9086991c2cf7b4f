"""Decides a whole scale step before it runs: which variant of every layer, how many tokens, ranked by what.

The answers are those that the gates would give one by one (`runtime/gates.py`). Where a gate needs a value
that exists only while the scale runs, and the graph cannot compute the answer itself, the step is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..analysis.reasons import Fallback, Reason
from ..lowering.region import Region
from ..lowering.rest import RegionModule
from ..policies.layer_plan import FEWEST_TOKENS, explicit_count
from .arms import Arm
from .controller import Controller
from .gates import DenseBlock, EntropyTap, LayerSkipGate, ScaleDepthGate
from .token_gates import TokenGate

ArmName = Literal["dense", "tapped", "pruned", "skipped"]


class Undecided(Exception):  # noqa: N818 - an answer that the caller acts on, not an error that reaches users
    """The scale's blocks have to run one by one: mostly, as a decision is not known before it runs."""

    def __init__(self, detail: str, layer: int | None = None, reason: Reason = Reason.UNDECIDED_STEP) -> None:
        self.fallback = Fallback(reason, detail=detail, layer=layer)
        super().__init__(detail)


@dataclass(frozen=True)
class SiteArms:
    """What one layer can run, read off its gates.

    Attributes:
        layer: 0-based.
        plain: the graph of a block that the analysis did not understand; then there is nothing else.
        dense: the whole block.
        tap, depth, skip, gather: the gates around it, where there are such.
    """

    layer: int
    plain: Region | None = None
    dense: Arm | None = None
    tap: EntropyTap | None = None
    depth: ScaleDepthGate | None = None
    skip: LayerSkipGate | None = None
    gather: TokenGate | None = None

    @property
    def shows_queries(self) -> bool:
        """Whether its graphs return the queries beside the hidden state."""
        return self.dense is not None and self.dense.layout is not None


def read_site(layer: int, module: nn.Module) -> SiteArms:
    """The variants of a layer.

    Raises:
        Undecided: a gate that answers while its layer runs.
    """
    if isinstance(module, RegionModule):
        return SiteArms(layer, plain=module.region)
    depth = module if type(module) is ScaleDepthGate else None
    early, late = (module, None) if depth is None else (depth.early, depth.late)
    tap = early if type(early) is EntropyTap else None
    whole = early if tap is None else tap.whole
    skip = late if type(late) is LayerSkipGate else None
    inner = late if skip is None else skip.kept
    gather = inner if type(inner) is TokenGate else None
    last = inner if gather is None else gather.whole
    if type(whole) is not DenseBlock or last not in (None, early):
        odd = whole if type(whole) is not DenseBlock else last
        raise Undecided(f"a gate of type {type(odd).__name__} answers while its layer runs", layer)
    return SiteArms(layer, None, whole.dense, tap, depth, skip, gather)


@dataclass(frozen=True)
class LayerDecision:
    """How one layer runs at one scale.

    Attributes:
        site: the layer.
        arm: which variant; `ran` is its graph, None for a skipped layer and one that was not understood.
        count: tokens computed: L, K or 0.
        ranked_by: layer whose map selects the tokens in the graph; None where another thing does, or all run.
        by_frequency: whether the graph selects the tokens by their distance to the mean token.
        base: layer whose map fills in for tokens that were not computed, or None.
        chosen: whether its keep set is decided before the scale runs.
        restored: whether tokens that are not computed get an update.
        update: whether the layer's own update is needed later.
        answers: what its gates say, for the ledger.
    """

    site: SiteArms
    arm: ArmName
    ran: Arm | None
    count: int
    ranked_by: int | None = None
    by_frequency: bool = False
    base: int | None = None
    chosen: bool = False
    restored: bool = False
    update: bool = False
    answers: tuple[tuple[str, bool], ...] = ()

    @property
    def measures(self) -> bool:
        """Whether the variant returns entropies."""
        gather = self.site.gather
        return self.arm == "tapped" or (gather is not None and self.ran is gather.tapped is not None)


def decide(sites: Sequence[SiteArms], controller: Controller, hidden: Tensor) -> list[LayerDecision]:
    """Decide every layer of the scale that is about to run; `hidden` [R, L, C] gives sizes alone.

    Raises:
        Undecided: with the layer and what is missing.
    """
    if controller.policy.watches(controller.scale):
        raise Undecided(f"policy={controller.options.policy!r} looks at every layer of this scale")
    if controller.options.compacts:
        raise Undecided(
            f"cache_policy={controller.options.cache_policy!r} looks at the queries of its layers"
        )
    if any(site.shows_queries for site in sites):
        raise Undecided("the layers show their queries to a cache policy, which this generation leaves out")
    if controller.reads_tokens:
        raise Undecided("the layer scope is measured on the tokens of this scale")
    return _Decider(controller, hidden).run(sites)


class _Decider:
    def __init__(self, controller: Controller, hidden: Tensor) -> None:
        self.controller, self.options, self.hidden = controller, controller.options, hidden
        self.length = hidden.shape[1]
        self.measured: set[int] = set()
        # An earlier part of the step may have measured.
        self.latest = controller.left.maps.latest

    def run(self, sites: Sequence[SiteArms]) -> list[LayerDecision]:
        found = []
        for site in sites:
            decision = self._layer(site)
            if decision.measures:
                self.measured.add(site.layer)
                self.latest = site.layer
            found.append(decision)
        return found

    def _layer(self, site: SiteArms) -> LayerDecision:
        if site.plain is not None:
            return LayerDecision(site, "dense", None, self.length)
        past = site.depth is not None and self.controller.prunes(site.layer)
        answers: tuple[tuple[str, bool], ...] = ()
        if site.depth is not None:
            answers += (("ScaleDepthGate", past),)
        if not past or (site.skip is None and site.gather is None):
            return self._whole(site, answers)
        if not self.options.by_score:
            raise Undecided(f"policy={self.options.policy!r} is asked while the scale runs")
        count, by, chosen = self._plan(site.layer)
        if site.skip is not None:
            answers += (("LayerSkipGate", count == 0),)
            if count == 0:
                restored = self.options.restore == "cache"
                return LayerDecision(site, "skipped", None, 0, restored=restored, answers=answers)
        some = count not in (0, self.length)
        if site.gather is None:
            return self._whole(site, answers)
        answers += ((type(site.gather).__name__, some),)
        if not some:
            return self._whole(site, answers)
        tapped = site.gather.tapped if self.controller.taps(site.layer) else None
        base = self.controller.left.maps.ranked_by(site.layer, self.latest)
        return LayerDecision(
            site,
            "pruned",
            tapped or site.gather.pruned,
            count,
            ranked_by=by if isinstance(by, int) else None,
            by_frequency=by == "frequency",
            base=base if tapped is not None and self._known(base) else None,
            chosen=chosen,
            restored=self.options.restore == "cache",
            answers=answers,
        )

    def _whole(self, site: SiteArms, answers: tuple[tuple[str, bool], ...]) -> LayerDecision:
        update = self.controller.needs_update(site.layer)
        tapped = site.tap is not None and self.controller.taps(site.layer)
        if site.tap is not None:
            answers += (("EntropyTap", tapped),)
        if tapped:
            assert site.tap is not None
            return LayerDecision(site, "tapped", site.tap.tapped, self.length, update=update, answers=answers)
        return LayerDecision(site, "dense", site.dense, self.length, update=update, answers=answers)

    def _known(self, layer: int) -> bool:
        return layer in self.measured or layer in self.controller.left.maps

    def _plan(self, layer: int) -> tuple[int, int | Literal["frequency"] | None, bool]:
        """K; what selects in the graph, a layer's map or the distance to the mean; whether that is done."""
        options, by_entropy = self.options, self.options.score == "entropy"
        ratio, wanted = self.controller.ratio(layer), self.controller.left.maps.ranked_by(layer, self.latest)
        if by_entropy and not self._known(wanted):
            return self.length, None, False
        in_graph = by_entropy or options.score == "frequency"
        if in_graph and ratio is not None and options.sampling == "topk":
            count = explicit_count(ratio, self.length)
            some = count not in (0, self.length)
            selects: int | Literal["frequency"] = wanted if by_entropy else "frequency"
            return (max(count, FEWEST_TOKENS), selects, False) if some else (count, None, False)
        before = by_entropy and wanted not in self.measured
        if before and options.sampling == "topk":
            # The host had to count; which tokens they are the graph finds out.
            count = self.controller.count(layer, self.hidden)
            return count, wanted if count not in (0, self.length) else None, False
        if before or options.scoring.by_place:
            plan = self.controller.plan(layer, self.hidden)
            return plan.count, None, plan.chosen is not None
        what = f"score={options.score!r}" if not by_entropy else "K by eq. 6"
        raise Undecided(f"{what} reads what layer {layer} gets", layer)
