"""The report as text: a line that says it all, then a table per question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..policies.registry import POLICIES
from ..runtime.report import kept_cell
from .facts import FallbackFacts, GateFacts, GenerationFacts, GraphFacts, RunFacts, ScaleFacts

if TYPE_CHECKING:
    from .explanation import Explanation

NOTHING = (
    "no graph of this backend took part: torch.compile compiles a module's forward and nothing else, so call "
    "the compiled module, and let it be the one whose forward is one scale step"
)
NO_GENERATION = (
    "no generation was open, so every layer ran dense: open one with toprovar_fx.generation(schedule)"
)


def as_text(found: Explanation) -> str:
    """The whole report."""
    return "\n".join(_lines(found)).rstrip() + "\n"


def headline(found: Explanation) -> str:
    """What was compiled and what it saved, in a line."""
    if not found.graphs:
        return NOTHING
    steps = [graph for graph in found.graphs if graph.kind == "scale step"]
    parts = [_count(len(found.graphs), "graph")]
    if steps:
        sites = steps[-1].sites
        parts.append(f"{sum(site.prunable for site in sites)} of {len(sites)} layers can be pruned")
    else:
        parts.append("none of them can be pruned")
    for run in found.generations:
        if run.flops_dense:
            parts.append(f"{share(run.flops, run.flops_dense)} of the dense FLOPs")
    parts.append(_count(recompilations(found), "recompilation"))
    serious = sum(not fallback.expected for fallback in found.fallbacks)
    parts.append(_count(serious, "fallback"))
    return ", ".join(parts)


def recompilations(found: Explanation) -> int:
    """Compilations of code that had been compiled before."""
    return sum(frame.compilations - 1 for frame in found.recompiles)


def kept_table(run: GenerationFacts) -> dict[tuple[int, int], RunFacts]:
    """What ran by (layer, scale)."""
    return {(row.layer, row.scale): row for row in run.runs}


def gate_totals(gates: Sequence[GateFacts]) -> dict[str, tuple[list[int], int, int]]:
    """Per gate: the layers that have it, how often it was asked and how often it said yes."""
    totals: dict[str, tuple[list[int], int, int]] = {}
    for gate in gates:
        layers, asked, fired = totals.get(gate.gate, ([], 0, 0))
        totals[gate.gate] = [*layers, gate.layer], asked + gate.asked, fired + gate.fired
    return totals


def _lines(found: Explanation) -> Iterator[str]:
    yield f"{found.model}: {headline(found)}"
    if found.graphs:
        yield f"torch {found.torch}, toprovar_fx {found.version}, {found.seconds:.1f} s with compilation"
        if found.options:
            yield _policy(str(found.options["policy"]))
        yield from _graphs(found.graphs)
        for graph in found.graphs:
            if graph.kind == "scale step":
                yield from _step(graph)
        for number, run in enumerate(found.generations):
            yield from _generation(number, run)
        if not found.generations:
            yield from ("", NO_GENERATION)
    yield from _recompiles(found)
    yield from _fallbacks(found.fallbacks)


def _policy(name: str) -> str:
    """What decided; a name that was taken out of the registry since is all that is known of it."""
    policy = POLICIES.get(name)
    return f"policy {name}" + ("" if policy is None else f": {policy.summary} ({policy.source})")


def _graphs(graphs: Sequence[GraphFacts]) -> Iterator[str]:
    rows = [
        [
            str(graph.index),
            graph.kind,
            graph.code or "-",
            str(graph.operations or "-"),
            str(graph.calls),
            seconds([time for region in graph.regions for time in region.compile_s]),
        ]
        for graph in graphs
    ]
    yield from table("Graphs", ["#", "kind", "code", "operations", "calls", "compile s"], rows)


def _step(graph: GraphFacts) -> Iterator[str]:
    rows = [
        [done.name, ranges(done.layers), f"{done.milliseconds:.1f}", done.rewrites or "-"]
        for done in graph.passes
    ]
    yield from table(f"Passes of graph {graph.index}", ["pass", "layers", "ms", "rewrites"], rows)
    gates: dict[str, list[int]] = {}
    for site in graph.sites:
        gates.setdefault(site.gates, []).append(site.layer)
    sites = [[ranges(layers), text] for text, layers in gates.items()]
    yield from table(f"Layers of graph {graph.index}", ["layers", "run by"], sites)
    regions = [[region.name, str(region.runs), seconds(region.compile_s)] for region in graph.regions]
    yield from table(f"Compiled parts of graph {graph.index}", ["part", "runs", "compile s"], regions)


def _generation(number: int, run: GenerationFacts) -> Iterator[str]:
    gates = [
        [gate, ranges(layers), str(asked), str(fired), share(fired, asked)]
        for gate, (layers, asked, fired) in gate_totals(run.gates).items()
    ]
    title = f"Gates of generation {number}"
    yield from table(title, ["gate", "layers", "asked", "fired", "rate"], gates)
    kept = kept_table(run)
    layers = sorted({layer for layer, _ in kept})
    rows = []
    for layer in layers:
        cells = [cell(kept.get((layer, scale))) for scale in range(len(run.sides))]
        rows.append([str(layer), *([_scope(run, layer)] if run.layer_scope else []), *cells])
    sides = [f"{height}x{width}" for height, width in run.sides]
    columns = ["layer", *(["R"] if run.layer_scope else []), *sides]
    yield from table("Tokens kept, by layer and scale; * entropies measured", columns, rows)
    budgets = [
        [
            str(scale.scale),
            f"{scale.side[0]}x{scale.side[1]}",
            tokens(scale),
            _giga(scale.flops),
            _giga(scale.flops_dense),
            share(scale.flops, scale.flops_dense),
        ]
        for scale in run.scales
    ]
    columns = ["scale", "side", "tokens x layers", "GFLOP", "dense", "share"]
    yield from table("Budget", columns, budgets)
    depth = "not reached" if run.depth is None else f"scale {run.depth}"
    yield f"depth D: {depth}" + ("" if run.exited_at is None else f"; not run from scale {run.exited_at} on")
    if run.eager_scales:
        yield f"scales {ranges(run.eager_scales)} ran outside the compiled graphs: raise recompile_limit"


def _recompiles(found: Explanation) -> Iterator[str]:
    again = [frame for frame in found.recompiles if frame.reasons]
    rows = [[frame.code, str(frame.compilations), reason] for frame in again for reason in frame.reasons]
    if rows:
        yield from table("Recompilations", ["code", "graphs", "because"], rows)
    if found.graph_breaks:
        breaks = [[str(count), reason.partition("\n")[0]] for reason, count in found.graph_breaks.items()]
        yield from table("Graph breaks", ["times", "because"], breaks)


def _fallbacks(fallbacks: Sequence[FallbackFacts]) -> Iterator[str]:
    for heading, expected in (("Stays dense", False), ("Stays dense, and has nothing to gain", True)):
        rows = [fallback for fallback in fallbacks if fallback.expected is expected]
        if rows:
            yield from ("", heading)
        for fallback in rows:
            yield f"  {fallback.reason}, {place(fallback)}"
            yield from (f"    {line}" for line in (fallback.source, fallback.detail) if line)
            yield f"    advice: {fallback.advice}"


def place(fallback: FallbackFacts) -> str:
    """Where a fallback is, in words."""
    where = "while drawing" if fallback.graph is None else f"graph {fallback.graph}"
    layers = f", layers {ranges(fallback.layers)}" if fallback.layers else ""
    return f"{where}{layers}" + (f", node {fallback.node}" if fallback.node else "")


def tokens(scale: ScaleFacts) -> str:
    """What a scale computed, in tokens summed over layers."""
    if scale.tokens:
        return f"{scale.kept} of {scale.tokens}"
    # A graph without layers that are told apart, such as the first scale's, has FLOPs all the same.
    return "all, in a dense graph" if scale.flops else "not run"


def share(part: float | None, whole: float | None) -> str:
    """A part of a whole in per cent, or - where one of them is not known."""
    return "-" if part is None or not whole else f"{part / whole:.0%}"


def cell(run: RunFacts | None) -> str:
    """A cell of the kept tokens, `.` where the layer did not run."""
    return "." if run is None else kept_cell(run.arm, run.kept, run.tokens)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A blank line, the title and aligned columns; nothing without rows."""
    if not rows:
        return
    widths = [max(len(row[at]) for row in (columns, *rows)) for at in range(len(columns))]
    yield from ("", title)
    for row in (columns, *rows):
        yield ("  " + "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True))).rstrip()


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: 0-3, 5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans) or "none"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _scope(run: GenerationFacts, layer: int) -> str:
    value = run.layer_scope.get(layer)
    return "-" if value is None else f"{value:.2f}"


def seconds(times: Sequence[float]) -> str:
    """Seconds of each compilation, or - without one."""
    return ", ".join(f"{time:.1f}" for time in times) or "-"


def _giga(flops: int | None) -> str:
    return "-" if flops is None else f"{flops / 1e9:.3g}"
