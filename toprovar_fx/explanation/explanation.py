"""The report of `explain`, and its forms: text, JSON and a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..passes.snapshot import Snapshots
from .facts import NOT_JSON, FallbackFacts, GenerationFacts, GraphFacts, PassFacts, RecompileFacts
from .page import write_page
from .text import as_text


@dataclass
class Explanation:
    """What the compiler did with a model and why: `print` it, or call `to_json` or `to_html`.

    Attributes:
        model: name of what was explained.
        options: the settings, or {} where the model was compiled before.
        torch, version: versions of torch and of this package.
        seconds: time of the call, compilation included.
        graphs, generations, fallbacks, recompiles: what was found.
        graph_breaks: how often Dynamo cut a graph, by its reason.
        output: what the call returned.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    torch: str = ""
    version: str = ""
    seconds: float = 0.0
    graphs: list[GraphFacts] = field(default_factory=list)
    generations: list[GenerationFacts] = field(default_factory=list)
    fallbacks: list[FallbackFacts] = field(default_factory=list)
    recompiles: list[RecompileFacts] = field(default_factory=list)
    graph_breaks: dict[str, int] = field(default_factory=dict)
    output: Any = field(default=None, repr=False, metadata=NOT_JSON)

    def __str__(self) -> str:
        return as_text(self)

    def to_json(self) -> dict[str, Any]:
        """Everything but `output` and the graphs' code as JSON values."""
        values: dict[str, Any] = _plain(self)
        return values

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page, with the code before and after every pass.

        Raises:
            OutputError: the file cannot be written.
        """
        return write_page(self, Path(path))

    def changes(self) -> Iterator[tuple[GraphFacts, PassFacts, dict[str, str], dict[str, str]]]:
        """Every pass that changed a graph: graph, pass, and the code before and after it, by titles."""
        for graph in self.graphs:
            snapshots = Snapshots()
            for done in graph.passes:
                if done.modified and done.before is not None and done.after is not None:
                    yield graph, done, snapshots.sections(done.before), snapshots.sections(done.after)


def _plain(value: Any) -> Any:
    """JSON values: records and mappings become objects with string keys, tuples become lists."""
    if is_dataclass(value):
        shown = [entry.name for entry in fields(value) if entry.metadata.get("json", True)]
        return {name: _plain(getattr(value, name)) for name in shown}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
