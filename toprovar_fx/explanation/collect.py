"""From what was recorded to the records of the report."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from torch import fx

from .._torch_private import FrameCompilation, frame_compilations
from ..analysis.reasons import Fallback, Reason
from ..declaration import Pass
from ..dense_program import DenseProgram
from ..passes.pipeline import BUILT_IN
from ..passes.snapshot import Snapshots
from ..passes.step import PassRecord
from ..program import StepProgram
from ..recording import Recording
from ..runtime.generation import Generation
from ..runtime.report import GenerationReport, report_of
from .explanation import Explanation
from .facts import (
    FallbackFacts,
    GateFacts,
    GenerationFacts,
    GraphFacts,
    PassFacts,
    RecompileFacts,
    RegionFacts,
    RunFacts,
    ScaleFacts,
    SiteFacts,
)

log = logging.getLogger(__name__)

Program = StepProgram | DenseProgram


def fill(explanation: Explanation, seen: Recording) -> None:
    """Write what was seen into the report."""
    frames = frame_compilations()
    reports = [report for run in seen.generations if (report := report_of(run)) is not None]
    runs = _region_runs(reports)
    if not explanation.options and seen.calls:
        explanation.options = next(iter(seen.calls)).options.as_dict()
    for index, (program, calls) in enumerate(seen.calls.items()):
        frame = frames.get(program.compile_id or "")
        explanation.graphs.append(_graph(index, program, calls, frame, runs))
    explanation.generations = [
        _generation(run, report) for run in seen.generations if (report := report_of(run)) is not None
    ]
    explanation.fallbacks = _fallbacks(list(seen.calls), reports)
    explanation.recompiles = _recompiles(explanation.graphs)


def _region_runs(reports: Iterable[GenerationReport]) -> Counter[int]:
    """How often each region ran, by its id."""
    counted: Counter[int] = Counter()
    for report in reports:
        counted.update(id(run.region) for run in report.runs if run.region is not None)
        counted.update(id(region) for _, region, _ in report.controller.ledger.other)
    return counted


def _graph(
    index: int, program: Program, calls: int, frame: FrameCompilation | None, runs: Counter[int]
) -> GraphFacts:
    known: dict[str, Pass] = {run.name: run for run in BUILT_IN}  # type: ignore[type-arg]
    known |= {run.name: run for run in program.options.extensions.passes}
    first = program.records[0].before if program.records else None
    regions = [
        RegionFacts(region.name, list(region.compile_seconds), runs[id(region)]) for region in program.regions
    ]
    return GraphFacts(
        index=index,
        kind=_kind(program),
        code="" if frame is None else frame.code,
        compile_id=program.compile_id,
        recompiled_because=None if frame is None else frame.reason,
        operations=_operations(first if isinstance(first, fx.GraphModule) else _captured(program)),
        calls=calls,
        passes=[_pass(record, known.get(record.name)) for record in program.records],
        sites=_sites(program),
        regions=regions,
    )


def _kind(program: Program) -> str:
    if isinstance(program, StepProgram):
        return "scale step"
    return "one token" if program.one_token else "dense"


def _captured(program: Program) -> fx.GraphModule | None:
    return program.regions[0].graph if isinstance(program, DenseProgram) else None


def _operations(graph: fx.GraphModule | None) -> int:
    if graph is None:
        return 0
    return sum(node.op not in ("placeholder", "output") for node in graph.graph.nodes)


def _pass(record: PassRecord, declared: Pass | None) -> PassFacts:  # type: ignore[type-arg]
    return PassFacts(
        name=record.name,
        modified=record.modified,
        layers=list(record.sites),
        milliseconds=record.milliseconds,
        rewrites="" if declared is None else declared.rewrites,
        ensures="" if declared is None else declared.ensures,
        price="" if declared is None else declared.price,
        before=record.before,
        after=record.after,
    )


def _sites(program: Program) -> list[SiteFacts]:
    if not isinstance(program, StepProgram):
        return []
    snapshots = Snapshots()
    return [
        SiteFacts(site.layer, snapshots.gates(program.step.module(site)), site.block.facts is not None)
        for site in program.step.sites
    ]


def _fallbacks(programs: list[Program], reports: list[GenerationReport]) -> list[FallbackFacts]:
    """Equal ones of several layers become one."""
    layers: dict[tuple[int | None, Reason, str, str, str], list[int]] = {}

    def add(graph: int | None, fallback: Fallback) -> None:
        key = (graph, fallback.reason, fallback.node, fallback.source, fallback.detail)
        found = layers.setdefault(key, [])
        if fallback.layer is not None and fallback.layer not in found:
            found.append(fallback.layer)

    static: set[Fallback] = set()
    for index, program in enumerate(programs):
        for record in program.records:
            for fallback in record.fallbacks:
                add(index, fallback)
                static.add(fallback)
    for report in reports:
        for fallback in report.fallbacks:
            if fallback not in static:
                add(None, fallback)
    return [
        FallbackFacts(
            graph,
            reason.name,
            sorted(found),
            node,
            source,
            detail,
            advice=reason.value,
            expected=reason is Reason.ONE_TOKEN,
        )
        for (graph, reason, node, source, detail), found in layers.items()
    ]


def _recompiles(graphs: list[GraphFacts]) -> list[RecompileFacts]:
    frames: dict[str, list[GraphFacts]] = {}
    for graph in graphs:
        if graph.compile_id is not None:
            frames.setdefault(graph.compile_id.partition("/")[0], []).append(graph)
    return [
        RecompileFacts(
            next((graph.code for graph in same if graph.code), f"function {frame}"),
            len(same),
            [graph.recompiled_because for graph in same if graph.recompiled_because is not None],
        )
        for frame, same in frames.items()
    ]


def _generation(run: Generation, report: GenerationReport) -> GenerationFacts:
    gates = report.controller.ledger.gates
    return GenerationFacts(
        images=report.images,
        sides=list(report.schedule.sides),
        depth=report.depth,
        exited_at=report.exited_at,
        eager_scales=run.eager_scales,
        layer_scope={layer: round(value, 4) for layer, value in sorted(report.roles.items())},
        flops=_counted(lambda: report.flops),
        flops_dense=_counted(lambda: report.flops_dense),
        scales=[_scale(report, scale) for scale in range(len(report.schedule))],
        gates=[GateFacts(gate, layer, *counts) for (gate, layer), counts in sorted(gates.items())],
        runs=[RunFacts(run.scale, run.layer, run.arm, run.kept, run.tokens) for run in report.runs],
    )


def _scale(report: GenerationReport, scale: int) -> ScaleFacts:
    runs = [run for run in report.runs if run.scale == scale]
    other = [(region, sizes) for at, region, sizes in report.controller.ledger.other if at == scale]

    def outside() -> int:
        return sum(region.flops(sizes) for region, sizes in other)

    def as_run() -> int:
        return outside() + sum(
            run.region.flops(run.sizes) for run in runs if run.region is not None and run.sizes is not None
        )

    def dense() -> int:
        layers = sum(run.dense.flops(run.dense_sizes) for run in runs)
        return report.controller.ledger.rows_factor(scale) * (outside() + layers)

    return ScaleFacts(
        scale=scale,
        side=report.schedule.sides[scale],
        kept=sum(run.kept for run in runs),
        tokens=sum(run.tokens for run in runs),
        flops=_counted(as_run),
        flops_dense=_counted(dense),
    )


def _counted(count: Callable[[], int]) -> int | None:
    """FLOPs, or None where an operator has no fake implementation: a report must not fail for that."""
    try:
        return count()
    except Exception as error:
        log.warning("FLOPs cannot be counted: %s", error)
        return None
