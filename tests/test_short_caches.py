"""Caches that lack rows are read by the gates of their own layer alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from toprovar_fx.errors import GraphError
from toprovar_fx.runtime.short_caches import ShortCaches, refuse_short_caches

Short = Callable[[ShortCaches], None]
WAYS: dict[str, Short] = {
    "known": lambda caches: caches.drop(1, 3),
    "perhaps": lambda caches: caches.suspect(1),
}


@pytest.fixture(params=WAYS)
def short(request) -> tuple[ShortCaches, list[ShortCaches], torch.Tensor]:
    """The caches of a model whose layer 1 left out rows, or may have; those known in the generation."""
    known: list[ShortCaches] = []
    caches, cache = ShortCaches(known), torch.zeros(2, 8)
    caches.hold(1, [cache])
    assert known == []
    WAYS[request.param](caches)
    return caches, known, cache


def test_its_own_layer_reads_it(short):
    own, known, cache = short
    refuse_short_caches(own, known, {0: {1}}, [cache.view(-1), torch.ones(3), 7])
    refuse_short_caches(own, known, {0: {1, 2}}, [cache])


@pytest.mark.parametrize(
    "readers", [{}, {0: {2}}, {1: {1}}], ids=["nobody", "another layer", "another input"]
)
def test_nothing_else_does(short, readers):
    own, known, cache = short
    with pytest.raises(GraphError, match="input 0 is a cache that lacks the rows"):
        refuse_short_caches(own, known, readers, [cache, torch.ones(2)])


def test_its_layer_reads_no_other(short):
    own, known, cache = short
    with pytest.raises(GraphError, match="not the cache that layer 1 wrote"):
        refuse_short_caches(own, known, {0: {1}}, [cache.clone()])
    # A layer that left out nothing may move its cache.
    refuse_short_caches(own, known, {0: {2}}, [cache.clone()])


@pytest.mark.parametrize("way", WAYS)
def test_layers_whose_caches_are_views_of_one_allocation(way):
    known: list[ShortCaches] = []
    caches, parts = ShortCaches(known), torch.zeros(3, 2, 8).unbind()
    for layer, part in enumerate(parts):
        caches.hold(layer, [part])
    WAYS[way](caches)
    caches.drop(2, 1)
    refuse_short_caches(caches, known, {0: {0}, 1: {1}, 2: {2}}, list(parts))
    with pytest.raises(GraphError, match="input 1 is a cache that lacks the rows"):
        refuse_short_caches(caches, known, {0: {0}, 2: {2}}, list(parts))
    with pytest.raises(GraphError, match="input 0 is a cache that lacks the rows"):
        refuse_short_caches(caches, known, {0: {1}}, [parts[2]])
    with pytest.raises(GraphError, match="not the cache that layer 1 wrote"):
        refuse_short_caches(caches, known, {0: {1}}, [parts[0]])
    # One that reaches over both.
    with pytest.raises(GraphError, match="input 0 is a cache that lacks the rows"):
        refuse_short_caches(caches, known, {0: {1}}, [parts[0].as_strided((3, 2, 8), (16, 8, 1))])


def test_another_model_does_not(short):
    others, known, cache = short
    assert known == [others]
    with pytest.raises(GraphError, match="input 1 is a cache that lacks the rows"):
        refuse_short_caches(ShortCaches(known), known, {1: {1}}, [torch.ones(2), cache])


def test_weights_are_no_caches(short):
    own, known, cache = short
    refuse_short_caches(own, known, {}, [nn.Parameter(cache)])


def test_nothing_is_held_after_the_end(short):
    own, known, cache = short
    own.release()
    refuse_short_caches(own, known, {}, [cache])
