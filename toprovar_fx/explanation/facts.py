"""What a report of `explain` consists of, as plain records; units are in the names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx

    from ..passes.step import Step

# Metadata of fields that JSON leaves out.
NOT_JSON = {"json": False}


@dataclass(frozen=True)
class PassFacts:
    """What one pass did to one graph, and what it declares.

    Attributes:
        name: the pass.
        modified: whether the step changed.
        layers: layers it rewrote.
        milliseconds: time it took.
        rewrites, ensures, price: the pass's own words.
        before, after: what it was given and what it returned, not part of the JSON.
    """

    name: str
    modified: bool
    layers: list[int]
    milliseconds: float
    rewrites: str
    ensures: str
    price: str
    before: Step | fx.GraphModule | None = field(default=None, repr=False, metadata=NOT_JSON)
    after: Step | None = field(default=None, repr=False, metadata=NOT_JSON)


@dataclass(frozen=True)
class SiteFacts:
    """One layer of a step.

    Attributes:
        layer: index from 0.
        gates: the modules that run it, from the outermost in.
        prunable: whether the analysis understood its block.
    """

    layer: int
    gates: str
    prunable: bool


@dataclass(frozen=True)
class RegionFacts:
    """A graph that runs as one unit.

    Attributes:
        name: what it is.
        compile_s: seconds of each compilation; empty if it runs as traced or never ran.
        runs: how often the generations that were seen ran it.
    """

    name: str
    compile_s: list[float]
    runs: int


@dataclass(frozen=True)
class GraphFacts:
    """A graph that Dynamo captured.

    Attributes:
        index: in the order of capture.
        kind: "scale step", "dense" or "one token".
        code: "file:line name" of the function, or "" if torch no longer knows.
        compile_id: Dynamo's "frame/count", or None.
        recompiled_because: why an earlier compilation of the same code did not serve, or None.
        operations: nodes other than inputs and output; 0 where the captured graph was not kept.
        calls: how often it was called.
        passes, sites, regions: what was done to it and what it consists of.
    """

    index: int
    kind: str
    code: str
    compile_id: str | None
    recompiled_because: str | None
    operations: int
    calls: int
    passes: list[PassFacts]
    sites: list[SiteFacts]
    regions: list[RegionFacts]


@dataclass(frozen=True)
class FallbackFacts:
    """Something that stays dense.

    Attributes:
        graph: index of the graph; None if it was found while an image was drawn.
        reason: name of the `Reason`.
        layers: layers that it concerns; empty for the whole graph.
        node, source, detail: where and what.
        advice: what to do about it.
        expected: nothing could be gained there.
    """

    graph: int | None
    reason: str
    layers: list[int]
    node: str
    source: str
    detail: str
    advice: str
    expected: bool


@dataclass(frozen=True)
class GateFacts:
    """How often a gate was asked in one layer of a generation, and how often it said yes."""

    gate: str
    layer: int
    asked: int
    fired: int


@dataclass(frozen=True)
class ScaleFacts:
    """The budget of one scale.

    Attributes:
        scale: index from 0.
        side: height and width in tokens.
        kept, tokens: summed over the layers that ran; both 0 where no layers were told apart.
        flops, flops_dense: of all rows, as run and had nothing been pruned; None if they cannot be counted.
    """

    scale: int
    side: tuple[int, int]
    kept: int
    tokens: int
    flops: int | None
    flops_dense: int | None


@dataclass(frozen=True)
class RunFacts:
    """One layer at one scale: what ran ("dense", "tapped", "pruned", "skipped"), K and L."""

    scale: int
    layer: int
    arm: str
    kept: int
    tokens: int


@dataclass(frozen=True)
class GenerationFacts:
    """What the gates decided in one generation.

    Attributes:
        images: B.
        sides: height and width in tokens of all scales.
        depth: scale depth D, or None if it was not reached or not asked for.
        exited_at: first scale that was not run, or None.
        eager_scales: scales that ran outside the compiled graphs.
        layer_scope: R by layer, where it was measured.
        flops, flops_dense: of the transformer, the scales that were not run included in the second; None if
            they cannot be counted.
        scales, gates, runs: the figures.
    """

    images: int
    sides: list[tuple[int, int]]
    depth: int | None
    exited_at: int | None
    eager_scales: list[int]
    layer_scope: dict[int, float]
    flops: int | None
    flops_dense: int | None
    scales: list[ScaleFacts]
    gates: list[GateFacts]
    runs: list[RunFacts]


@dataclass(frozen=True)
class RecompileFacts:
    """A function whose code Dynamo compiled.

    Attributes:
        code: "file:line name".
        compilations: how many graphs of it were seen.
        reasons: why each but the first was needed.
    """

    code: str
    compilations: int
    reasons: list[str]
