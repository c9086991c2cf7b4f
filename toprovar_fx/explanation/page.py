"""The report as one HTML page that needs nothing else: style and script are in it, nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from ..whole_files import replace_file
from .diff import compare
from .facts import FallbackFacts, GenerationFacts
from .markup import because, code, meter, table
from .text import (
    NO_GENERATION,
    NOTHING,
    cell,
    gate_totals,
    headline,
    kept_table,
    place,
    ranges,
    recompilations,
    share,
    tokens,
)

if TYPE_CHECKING:
    from .explanation import Explanation


def write_page(found: Explanation, path: Path) -> Path:
    """Write the page and return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = as_page(found)
        replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}") from error
    return path


def as_page(found: Explanation) -> str:
    """The whole page."""
    style, script = (
        files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    title = escape(f"{found.model} under toprovar")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>",
            f"<header><h1>{title}</h1>",
            f'<p class="soft">{escape(headline(found))}</p>',
            *_cards(found),
            "</header>",
            '<div class="bar"><form role="search">',
            '<input id="search" type="search" placeholder="Search code, layers, reasons">',
            '<button type="submit">Next</button><button type="button" id="previous">Previous</button>',
            '<span id="found" class="soft" aria-live="polite"></span></form></div>',
            "<main>",
            *_body(found),
            "</main>",
            f"<footer>torch {escape(found.torch)}, toprovar_fx {escape(found.version)}, "
            f"{found.seconds:.1f} s with compilation</footer>",
            f"<script>\n{script}</script>\n</body>\n</html>\n",
        ]
    )


def _cards(found: Explanation) -> Iterator[str]:
    cards: list[tuple[str, str, str]] = []
    for run in found.generations[:1]:
        kept, whole = sum(row.kept for row in run.runs), sum(row.tokens for row in run.runs)
        saved = "good" if run.flops and run.flops_dense and run.flops < run.flops_dense else ""
        cards.append((share(run.flops, run.flops_dense), "of the dense FLOPs", saved))
        if whole:
            cards.append((share(kept, whole), "of the tokens computed, where a scale ran", ""))
    steps = [graph for graph in found.graphs if graph.kind == "scale step"]
    if steps:
        prunable = sum(site.prunable for site in steps[-1].sites)
        cards.append((f"{prunable} of {len(steps[-1].sites)}", "layers can be pruned", ""))
    again = recompilations(found)
    serious = sum(not fallback.expected for fallback in found.fallbacks)
    compiling = sum(sum(region.compile_s) for graph in found.graphs for region in graph.regions)
    cards.append((str(len(found.graphs)), f"graphs, {again} of them recompilations", ""))
    cards.append((str(serious), "fallbacks", "warn" if serious else "good"))
    if compiling:
        cards.append((f"{compiling:.1f} s", "compiling graphs", ""))
    yield '<div class="cards">'
    for value, meaning, kind in cards:
        yield f'<div class="card {kind}"><b>{escape(value)}</b><span>{escape(meaning)}</span></div>'
    yield "</div>"


def _body(found: Explanation) -> Iterator[str]:
    if not found.graphs:
        yield f"<section><h2>Nothing was compiled</h2><p>{escape(NOTHING)}</p></section>"
    yield from _fallbacks("What stays dense, and why", [x for x in found.fallbacks if not x.expected])
    for number, run in enumerate(found.generations):
        yield from _generation(number, run)
    if found.graphs and not found.generations:
        yield f"<section><h2>Tokens kept</h2><p>{escape(NO_GENERATION)}</p></section>"
    if found.graphs:
        yield from _graphs(found)
        yield from _passes(found)
        yield from _changes(found)
    yield from _fallbacks("Dense with nothing to gain", [x for x in found.fallbacks if x.expected])
    settings = [[f"<code>{escape(name)}</code>", code(value)] for name, value in found.options.items()]
    yield "<section><details><summary>Options</summary><div class='inside'>"
    yield from table(["option", "value"], settings)
    yield "</div></details></section>"


def _fallbacks(title: str, fallbacks: Sequence[FallbackFacts]) -> Iterator[str]:
    if not fallbacks:
        return
    yield f"<section><h2>{title}</h2>"
    for fallback in fallbacks:
        kind = "fallback expected" if fallback.expected else "fallback"
        where = f'<span class="soft">{escape(place(fallback))}</span>'
        yield f'<div class="{kind}"><b>{fallback.reason}</b> {where}'
        for line in (fallback.source, fallback.detail):
            if line:
                yield f"<br><code>{escape(line)}</code>"
        yield f"<br>{escape(fallback.advice)}</div>"
    yield "</section>"


def _generation(number: int, run: GenerationFacts) -> Iterator[str]:
    depth = "was not reached" if run.depth is None else f"is scale {run.depth}"
    exited = "" if run.exited_at is None else f" Scales from {run.exited_at} on were not run."
    yield f"<section><h2>Tokens kept, generation {number}</h2>"
    images = "1 image" if run.images == 1 else f"{run.images} images"
    star = " An asterisk: entropies were measured." if run.runs else " No layer was run by a gate."
    yield f'<p class="soft">{images}. The depth D {depth}.{exited}{star}</p>'
    if run.eager_scales:
        eager = ranges(run.eager_scales)
        yield f"<p>Scales {eager} ran outside the compiled graphs: raise recompile_limit.</p>"
    yield from _heat(run)
    yield "<h3>Budget of each scale</h3>"
    rows = [
        [
            str(scale.scale),
            f"{scale.side[0]} x {scale.side[1]}",
            escape(tokens(scale)),
            meter(scale.flops, scale.flops_dense),
            share(scale.flops, scale.flops_dense),
        ]
        for scale in run.scales
    ]
    yield from table(["scale", "side", "tokens x layers", "FLOPs of dense", ""], rows)
    gates = [
        [gate, ranges(layers), str(asked), str(fired), meter(fired, asked), share(fired, asked)]
        for gate, (layers, asked, fired) in gate_totals(run.gates).items()
    ]
    if gates:
        yield "<h3>Gates</h3>"
        yield from table(["gate", "layers", "asked", "fired", "", "rate"], gates)
    yield "</section>"


def _heat(run: GenerationFacts) -> Iterator[str]:
    kept = kept_table(run)
    if not kept:
        return
    yield '<div class="wide"><table class="heat"><thead><tr><th>layer</th>'
    if run.layer_scope:
        yield '<th title="layer scope: 0 global, 1 detail">R</th>'
    yield "".join(f"<th>{height}x{width}</th>" for height, width in run.sides) + "</tr></thead><tbody>"
    for layer in sorted({layer for layer, _ in kept}):
        yield f"<tr><th>{layer}</th>"
        if run.layer_scope:
            yield f"<th>{run.layer_scope[layer]:.2f}</th>" if layer in run.layer_scope else "<th>-</th>"
        for scale in range(len(run.sides)):
            found = kept.get((layer, scale))
            if found is None:
                yield '<td class="none">&middot;</td>'
                continue
            part = found.kept / found.tokens
            kind = "skip" if not part else "strong" if part > 0.55 else ""
            hint = f"layer {layer}, scale {scale}: {found.kept} of {found.tokens} tokens, {found.arm}"
            yield f'<td class="{kind}" style="--p:{part:.0%}" title="{hint}">{cell(found)}</td>'
        yield "</tr>"
    yield "</tbody></table></div>"


def _graphs(found: Explanation) -> Iterator[str]:
    yield "<section><h2>Graphs</h2>"
    rows = []
    for graph in found.graphs:
        why = (
            f"<br><span class='soft'>{because(graph.recompiled_because)}</span>"
            if graph.recompiled_because
            else ""
        )
        rows.append(
            [str(graph.index), graph.kind, code(graph.code) + why, str(graph.operations), str(graph.calls)]
        )
    yield from table(["#", "kind", "code, and why it was compiled again", "operations", "calls"], rows)
    for reason, count in found.graph_breaks.items():
        yield f"<p>Dynamo cut a graph {count} times: {escape(reason.splitlines()[0])}</p>"
    for graph in found.graphs:
        yield f"<h3>Compiled parts of graph {graph.index}</h3>"
        parts = [
            [
                escape(region.name),
                str(region.runs),
                ", ".join(f"{time:.1f}" for time in region.compile_s) or "-",
            ]
            for region in graph.regions
        ]
        yield from table(["part", "runs", "compile s"], parts)
        by_gates: dict[str, list[int]] = {}
        for site in graph.sites:
            by_gates.setdefault(site.gates, []).append(site.layer)
        if by_gates:
            yield from table(
                ["layers", "run by"], [[ranges(at), code(text)] for text, at in by_gates.items()]
            )
    yield "</section>"


def _passes(found: Explanation) -> Iterator[str]:
    for graph in found.graphs:
        rows = [
            [f"<b>{escape(done.name)}</b>", ranges(done.layers), f"{done.milliseconds:.1f}"]
            + [escape(text).replace("`", "") or "-" for text in (done.rewrites, done.ensures, done.price)]
            for done in graph.passes
            if done.rewrites
        ]
        if rows:
            yield f"<section><h2>Passes of graph {graph.index}</h2>"
            yield from table(["pass", "layers", "ms", "rewrites", "ensures", "price"], rows)
            yield "</section>"


def _changes(found: Explanation) -> Iterator[str]:
    yield "<section><h2>The graph before and after each pass</h2>"
    for number, (graph, done, before, after) in enumerate(found.changes()):
        parts = compare(before, after)
        added, removed = sum(made.added for _, made in parts), sum(made.removed for _, made in parts)
        counts = f'<span class="plus">+{added}</span> <span class="minus">&minus;{removed}</span>'
        yield f"<details><summary><b>{escape(done.name)}</b>, graph {graph.index} "
        yield f'<span class="soft">{counts} lines, layers {ranges(done.layers)}</span></summary>'
        yield '<div class="inside"><div class="view">'
        for value in ("changes", "before", "after"):
            checked = " checked" if value == "changes" else ""
            yield f'<label><input type="radio" name="view{number}" value="{value}"{checked}> {value}</label>'
        yield "</div>"
        for title, made in parts:
            yield f'<h3>{escape(title)}</h3><div class="code">{made.html}</div>'
        yield "</div></details>"
    yield "</section>"
