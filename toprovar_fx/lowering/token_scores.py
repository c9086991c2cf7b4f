"""The graph that scores tokens by their distance to the mean token, lowered once for all layers of a step."""

from __future__ import annotations

from torch import fx

from ..criteria.scores import frequency_score
from ..input_specs import InputSpec


def frequency_graph(hidden: InputSpec) -> fx.GraphModule:
    """`frequency_score` of a hidden state [R, L, C]; returns float32 [R, L]."""
    graph = fx.Graph()
    tokens = graph.placeholder("hidden")
    tokens.meta = {"toprovar_spec": hidden}
    graph.output(graph.call_function(frequency_score, (tokens,)))
    return fx.GraphModule({}, graph, class_name="FrequencyScore")
