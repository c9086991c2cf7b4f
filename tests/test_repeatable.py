"""Which graphs may run several times before a recording of them serves."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn

from toprovar_fx.analysis.caches import CACHE_HOLDER
from toprovar_fx.analysis.repeatable import obstacle_to_repeating

from .captured import captured, writes_its_cache


def test_graphs_that_may_run_twice():
    assert obstacle_to_repeating(captured(writes_its_cache, torch.zeros(2, 3), torch.ones(2, 2)).graph) == ""


def counts(x, n):
    n.add_(1)
    return x


def counts_view(x, n):
    n.view(-1).add_(1)
    return x


def reads_first(cache, rows):
    y = cache + rows
    cache[:, 0:2] = y
    return y


def accumulates(cache, rows):
    cache += rows
    return cache


def writes_view(cache, rows):
    cache.transpose(0, 1)[0:2] = rows
    return rows


def returns_out(x, y):
    return torch.add(x, 1, out=y)


def counts_in_a_list(x, n):
    torch._foreach_add_([n], 1)
    return x


def counts_behind_another(x, n):
    torch._foreach_add_([x + 1, n], 1)
    return x


def counts_a_broadcast(x, n):
    torch.broadcast_tensors(x + 1, n)[1].add_(1)
    return x


def activates_by_position(x, n):
    return nn.functional.silu(n, True) + x


def drops_out(x, y):
    return nn.functional.dropout(x, 0.5) + y


def draws(x, y):
    return torch.rand_like(x) + y


def part_beside(read: bool):
    """A graph in which a numbered part of an input is written, as `canonical_caches` writes it."""
    graph = fx.Graph()
    cache, rows = graph.placeholder("cache"), graph.placeholder("rows")
    part = graph.call_function(operator.getitem, (cache, (0,)))
    part.meta[CACHE_HOLDER] = cache
    total = graph.call_method("sum", (cache,)) if read else rows
    graph.call_function(operator.setitem, (part, slice(0, 1), rows))
    graph.output((part, total))
    return graph


def test_who_reads_what_a_written_part_is_of_may_not():
    assert obstacle_to_repeating(part_beside(read=False)) == ""
    assert "uses what getitem is a part of" in obstacle_to_repeating(part_beside(read=True))


@pytest.mark.parametrize(
    "function",
    [
        *(counts, counts_view, counts_in_a_list, counts_behind_another, counts_a_broadcast),
        *(reads_first, accumulates, writes_view, returns_out, activates_by_position, drops_out, draws),
    ],
)
def test_graphs_that_may_not(function):
    assert obstacle_to_repeating(captured(function, torch.zeros(2, 2), torch.ones(2, 2)).graph)
