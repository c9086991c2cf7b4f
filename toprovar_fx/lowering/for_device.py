"""What a graph calls on its device in the place of what Inductor would write."""

from __future__ import annotations

from torch import fx

from .attentions import with_attentions
from .epilogues import with_epilogues
from .projected_queries import with_projected_queries
from .residuals import with_residuals
from .rotated_attentions import with_rotated_attentions
from .rotations import with_rotations


def for_device(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph that calls what is faster on its device than Inductor's own kernels, or `graph`."""
    for rewrite in (
        with_attentions,
        with_projected_queries,
        with_epilogues,
        with_rotations,
        with_rotated_attentions,
        with_residuals,
    ):
        graph = rewrite(graph)
    return graph
