"""Graphs as text for people: a statement a line with its shape, and the user's source line above it."""

from __future__ import annotations

import re

import sympy
from torch import fx

from .._torch_private import SymbolicInputs, clone_graph, symbolic_values
from ..analysis.graph_sizes import graph_specs
from ..input_specs import IMAGES, KEPT, OFFSET

# Sizes for working out shapes: small, so that they fit any cache, and all different.
_HINTS = {KEPT: 4, OFFSET: 8, IMAGES: 1}
_OTHER_SIZES = range(6, 10_000, 5)

_SIGNATURE = re.compile(r"^def forward\(self(?:, )?(.*)\):$")
_PARAMETER = re.compile(r'(\w+)(?: *: *"([^"]*)"| *: *[\w.]+)?(?:, |$)')
_ANNOTATION = re.compile(r'^(\w+) *: *"([^"]*)" = ')
_DELETED = re.compile(r";  (?:\w+ = )+(?:None|\w+)(?:;  (?:\w+ = )+None)?$")
_ALIAS = re.compile(r"^(\w+) = (\w+)$")
_FILE = re.compile(r"^# File: (?:.*[/\\])?([^/\\]+:\d+) in \w+, code: (.*)$")
_WHOLE_SLICE = re.compile(r"slice\(None, None, None\)")
_SLICE = re.compile(r"slice\(([^(),]+), ([^(),]+), None\)")
_INDEX = re.compile(r"\[\(([^()]*)\)\]")


def readable(graph: fx.GraphModule, *, rewritten: bool = False) -> str:
    """The code of a graph, one line per statement.

    Args:
        graph: as Dynamo captured it, or as a pass made it.
        rewritten: the values that Dynamo left at the nodes may be out of date, so shapes are worked out anew,
            with K for the kept tokens; where that fails, the text says so and has no shapes.
    """
    names: dict[str, str] = {}
    note: list[str] = []
    if rewritten:
        graph, names, note = _with_shapes(graph)
    code = graph.graph.python_code("self", verbose=True).src
    if names:
        code = re.sub(r"\b(?:s|u|zuf)\d+\b", lambda found: names.get(found[0], found[0]), code)
    origin = "made by a pass" if rewritten else "no source line"
    return "\n".join([*note, *_tidy(code, origin)]) + "\n"


def _with_shapes(graph: fx.GraphModule) -> tuple[fx.GraphModule, dict[str, str], list[str]]:
    specs = graph_specs(graph.graph)
    symbols = sorted(set().union(*(spec.symbols for spec in specs)) - set(_HINTS), key=str)
    hints: dict[sympy.Symbol, int] = {**_HINTS, **dict(zip(symbols, _OTHER_SIZES, strict=False))}
    copied = clone_graph(graph)
    try:
        inputs = SymbolicInputs(specs, hints)
        values = symbolic_values(copied, inputs)
    except Exception as error:  # of any operator's fake implementation: code without shapes is still code
        detail = str(error).partition("\n")[0][:120]
        return copied, {}, [f"# shapes unknown: {type(error).__name__}: {detail}"]
    for node in copied.graph.nodes:
        if node.op != "output":
            node.meta["val"] = values[node]
    return copied, inputs.symbol_names, []


def _tidy(code: str, origin: str) -> list[str]:
    lines: list[str] = []
    inputs: dict[str, int] = {}
    for raw in code.strip().splitlines():
        line = _DELETED.sub("", raw.strip())
        signature = _SIGNATURE.match(line)
        if signature:
            parameters = _parameters(signature[1])
            inputs = {text.strip().rstrip(",").partition(":")[0]: at for at, text in enumerate(parameters, 1)}
            lines += ["def forward(", *parameters, "):"]
        elif line == "# No stacktrace found for following nodes":
            lines.append(f"    # {origin}")
        elif (alias := _ALIAS.match(line)) and alias[2] in inputs:
            # The statements use the names of the nodes, so the signature shows those.
            at = inputs[alias[2]]
            lines[at] = lines[at].replace(alias[2], alias[1], 1)
        elif line and line not in ("import torch", "from torch import device"):
            line = _FILE.sub(r"# \1, \2", line)
            line = _INDEX.sub(r"[\1]", _SLICE.sub(_short_slice, _WHOLE_SLICE.sub(":", line)))
            lines.append("    " + _ANNOTATION.sub(r"\1: \2 = ", line))
        elif lines and lines[-1]:
            lines.append("")
    return lines


def _parameters(text: str) -> list[str]:
    return [
        f"    {found[1]}: {found[2]}," if found[2] else f"    {found[1]},"
        for found in _PARAMETER.finditer(text)
        if found[1]
    ]


def _short_slice(found: re.Match[str]) -> str:
    return ":".join("" if bound == "None" else bound for bound in (found[1], found[2]))
