"""Caches with shared tails on CUDA: the driver's pages, and generations in them."""

from __future__ import annotations

import dataclasses
import gc
import os

import pytest
import torch

from toprovar_fx.evaluation.memory import peak_bytes
from toprovar_fx.models.cache import CacheShelf, KVCache
from toprovar_fx.models.cache_layout import CacheLayout
from toprovar_fx.models.cache_memory import CacheSizes
from toprovar_fx.models.cuda_pages import cuda_pages
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.models.shared_tail import mapped_bytes
from toprovar_fx.runtime.report import report_of
from toprovar_fx.schedules import Schedule

from .models.subjects import CONFIG, MANY_GRAPHS, OPEN, Outcome, State, TinyInfinity, generate, identical

pytestmark = pytest.mark.gpu

LARGE = dataclasses.replace(CONFIG, depth=3, width=512, heads=4, rope_grid=64)
SCHEDULE = Schedule(tuple((side, side) for side in (1, 2, 4, 8, 16, 32, 48, 64)))
KEPT, TOKENS = SCHEDULE.tokens_before_last, SCHEDULE.ends[-1]
MEBIBYTE = 2**20


class Large(TinyInfinity):
    """Wide enough that its caches span several of the device's pages."""

    def __init__(self) -> None:
        self.name, self.width, self.layers = "infinity", LARGE.width, LARGE.depth
        self.cache: KVCache | None = None
        torch.manual_seed(0)
        model = Infinity(LARGE).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        self.model = model.to("cuda", torch.bfloat16)

    def state(self, images: int, schedule: Schedule) -> State:
        """The text, and the cache that was set: it stays in place from one generation to the next."""
        assert self.cache is not None
        source = torch.Generator().manual_seed(7)
        rows = 2 * images
        text = torch.randn(rows, LARGE.text_maxlen, LARGE.text_channels, generator=source)
        lengths = torch.full((rows,), 5, device="cuda")
        return State(self.cache, self.model.prepare_text(text.to(self.parameter), lengths))


def sizes_of(rows: int, layout: CacheLayout, kept_tokens: int = KEPT) -> CacheSizes:
    return CacheSizes.of(LARGE, rows, TOKENS, torch.bfloat16, layout=layout, kept_tokens=kept_tokens)


def new_cache(layout: CacheLayout, images: int = 1) -> KVCache:
    return KVCache(sizes_of(2 * images, layout), torch.device("cuda", 0))


def free_bytes() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def first_shared_slot(cache: KVCache) -> int:
    lies = cache.sizes.in_pages(cuda_pages(0).page_bytes)
    return -(-lies.own_bytes // lies.token_bytes)


def test_tails_are_one_memory_and_prefixes_are_not():
    before = mapped_bytes("cuda")
    cache = new_cache("shared")
    assert mapped_bytes("cuda") > before
    assert not any(each.any() for each in cache.keys + cache.values)
    shared = first_shared_slot(cache)
    assert KEPT <= shared < TOKENS < cache.keys[0].shape[2]
    for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
        keys[:, :, :KEPT], values[:, :, :KEPT] = layer + 1, -layer - 1
    cache.keys[0][0, :, shared:], cache.keys[0][1, :, shared:] = 7, 8
    cache.values[2][:, :, shared:] = 9
    for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
        assert (keys[:, :, :KEPT] == layer + 1).all() and (values[:, :, :KEPT] == -layer - 1).all()
        assert (keys[0, :, shared:] == 7).all() and (keys[1, :, shared:] == 8).all()
        assert (values[:, :, shared:] == 9).all()


@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="other processes take memory of the device")
def test_the_device_gives_out_what_was_promised_and_gets_it_back():
    warm = new_cache("shared")
    del warm
    before, mapped = free_bytes(), mapped_bytes("cuda")
    cache = new_cache("shared")
    taken, promised = before - free_bytes(), cache.sizes.memory_bytes(cuda_pages(0).page_bytes)
    assert mapped_bytes("cuda") - mapped == promised < cache.sizes.separate_bytes - 16 * MEBIBYTE
    # Page tables come on top.
    assert promised <= taken <= promised + 8 * MEBIBYTE
    view = cache.keys[2][:1, :, 5:9]
    del cache
    assert before - free_bytes() > 0 and mapped_bytes("cuda") - mapped == promised
    view.fill_(1)
    del view
    assert before - free_bytes() <= 8 * MEBIBYTE and mapped_bytes("cuda") == mapped


def test_a_cache_that_dies_under_a_kernel_is_freed_after_it():
    before = mapped_bytes("cuda")
    for _ in range(3):
        cache = new_cache("shared")
        torch.cuda._sleep(100_000_000)
        for each in cache.keys + cache.values:
            each.fill_(1)
        del cache, each
        gc.collect()
    torch.cuda.synchronize()
    assert mapped_bytes("cuda") == before


def test_a_cache_that_dies_while_a_graph_is_recorded_is_freed_later():
    before = mapped_bytes("cuda")
    cache, graph, x = new_cache("shared"), torch.cuda.CUDAGraph(), torch.ones(8, device="cuda")
    with torch.cuda.graph(graph):
        y = x + 1
        del cache
    assert len(cuda_pages(0).retired) == 2 * LARGE.depth
    graph.replay()
    again = new_cache("shared")
    assert not cuda_pages(0).retired and (y == 2).all()
    del again
    gc.collect()
    assert mapped_bytes("cuda") == before


def test_the_peak_counts_mapped_caches():
    caches: list[KVCache] = []
    before = mapped_bytes("cuda")
    peak = peak_bytes(lambda: caches.append(new_cache("shared")), "cuda")
    assert peak is not None and peak >= mapped_bytes("cuda") > before


def test_a_shelf_keeps_the_mapping():
    before = mapped_bytes("cuda")
    shelf, place = CacheShelf(), torch.device("cuda", 0)
    cache = shelf.take(sizes_of(2, "shared"), place)
    address = cache.keys[0].data_ptr()
    shelf.give(cache)
    del cache
    again = shelf.take(sizes_of(2, "shared"), place)
    assert again.keys[0].data_ptr() == address
    shelf.give(again)
    del again
    other = shelf.take(sizes_of(2, "shared", KEPT - SCHEDULE.tokens[-2]), place)
    assert mapped_bytes("cuda") - before == other.sizes.memory_bytes(cuda_pages(0).page_bytes)


@pytest.fixture(scope="module")
def subject():
    return Large()


def drawn(subject: Large, layout: CacheLayout, forward, times: int = 1) -> list[Outcome]:
    subject.cache = new_cache(layout)
    try:
        return [generate(subject, forward, schedule=SCHEDULE, seed=1 + at) for at in range(times)]
    finally:
        subject.cache = None


@pytest.mark.parametrize("layout", ["token_major", "shared"])
def test_an_eager_generation_does_not_depend_on_the_layout(subject, layout):
    (expected,), (found,) = drawn(subject, "plain", subject.model), drawn(subject, layout, subject.model)
    assert identical(found.logits, expected.logits)


OPTIONS = {
    "dense": {"preset": "lossless"},
    "pruned": {**OPEN, "keep": {6: 0.5, 7: {1: 0.25, 2: 0.5}}, "entropy_source": "previous_scale"},
    "compacted": {**OPEN, "cache_policy": "hack", "cache_budget": 0.5},
}


@pytest.mark.parametrize("unit", ["block", "step"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_compiled_generation_does_not_depend_on_the_layout(subject, options, unit):
    """Eager lowering, bit for bit; with `unit="step"` the later generations replay recorded graphs."""
    found = {}
    for layout in ("plain", "shared"):
        torch.compiler.reset()
        settings = {**options, "unit": unit, "lowering": "eager"}
        forward = torch.compile(subject.model, backend="toprovar", options=settings)
        with MANY_GRAPHS:
            found[layout] = drawn(subject, layout, forward, times=3)
    for ours, theirs in zip(found["shared"], found["plain"], strict=True):
        assert identical(ours.logits, theirs.logits)
        assert not report_of(ours.run).fallbacks


def unshared(cache: KVCache) -> KVCache:
    """A cache of the same shapes and strides in which no layers share memory."""
    other = new_cache("plain")
    for name in ("keys", "values"):
        held = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
            for x in getattr(cache, name)
        ]
        setattr(other, name, [each.zero_() for each in held])
    return other


@pytest.mark.slow
@pytest.mark.parametrize("code", ["shared", "fused"])
@pytest.mark.parametrize("options", [OPTIONS["dense"], OPTIONS["pruned"]], ids=["dense", "pruned"])
def test_inductor_computes_what_it_computes_without_sharing(subject, options, code):
    """The same compiled code on caches of the same strides: bit for bit."""
    torch.compiler.reset()
    settings = {**options, "unit": "step", "step_code": code}
    forward = torch.compile(subject.model, backend="toprovar", options=settings)
    shared = new_cache("shared")
    found: dict[str, list[Outcome]] = {}
    for name, cache in (("shared", shared), ("unshared", unshared(shared))):
        subject.cache = cache
        with MANY_GRAPHS:
            found[name] = [generate(subject, forward, schedule=SCHEDULE, seed=1 + at) for at in range(2)]
    subject.cache = None
    for at, (ours, theirs) in enumerate(zip(found["shared"], found["unshared"], strict=True)):
        by_scale = [float((a - b).abs().max()) for a, b in zip(ours.logits, theirs.logits, strict=True)]
        assert identical(ours.logits, theirs.logits), (
            f"generation {at}: largest difference by scale {by_scale}"
        )
