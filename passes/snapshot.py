"""What a step looks like between two passes, as text: which gates run each layer, and every graph's code."""

from __future__ import annotations

from torch import fx, nn

from ..lowering.readable import readable
from ..runtime.arms import Arm
from .step import Step


class Snapshots:
    """Makes texts of steps; a graph that several of them use is rendered once and keeps its number."""

    def __init__(self) -> None:
        # Graphs are kept alive, so that an id means one graph: its number, title and code.
        self._known: dict[int, tuple[fx.GraphModule, str, str, str]] = {}

    def text(self, state: Step | fx.GraphModule) -> str:
        """The step, or a captured graph, as text."""
        return "\n".join(f"# {title}\n{text}" for title, text in self.sections(state).items())

    def sections(self, state: Step | fx.GraphModule) -> dict[str, str]:
        """The parts of that text by their titles: layers, step, and one part per graph."""
        if isinstance(state, fx.GraphModule):
            return {"The captured graph": readable(state)}
        used: dict[str, str] = {}
        layers = []
        for site in state.sites:
            reason = f"  # {site.block.fallback.reason.name}" if site.block.fallback else ""
            layers.append(f"layer {site.layer}: {self._describe(state.module(site), used)}{reason}\n")
        for name, module in state.graph.named_children():
            if name.startswith("rest_") and isinstance(module, fx.GraphModule):
                self._graph(module, "outside the blocks", False, used)
        return {"What runs each layer": "".join(layers), "The step": readable(state.graph), **used}

    def gates(self, module: nn.Module) -> str:
        """The gates of one layer, from the outermost in, with the numbers of the graphs that they run."""
        return self._describe(module, {})

    def _describe(self, module: nn.Module, used: dict[str, str]) -> str:
        if isinstance(module, fx.GraphModule):
            return f"as traced, {self._graph(module, 'block as traced', False, used)}"
        parts = [f"{name}={self._describe(child, used)}" for name, child in module.named_children()]
        arms = {name: value for name, value in vars(module).items() if isinstance(value, Arm)}
        for name, arm in arms.items():
            # Every gate knows the dense block; it is worth a word where it is all that there is.
            if name != "dense" or (len(arms) == 1 and not parts):
                parts.append(f"{name}={self._graph(arm.region.graph, arm.region.name, True, used)}")
        return f"{type(module).__name__}({', '.join(parts)})"

    def _graph(self, graph: fx.GraphModule, name: str, rewritten: bool, used: dict[str, str]) -> str:
        if id(graph) not in self._known:
            number = f"#{len(self._known) + 1}"
            code = readable(graph, rewritten=rewritten)
            self._known[id(graph)] = graph, number, f"Graph {number}, {name}", code
        _, number, title, code = self._known[id(graph)]
        used[title] = code
        return number
