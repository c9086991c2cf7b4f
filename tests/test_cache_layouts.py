"""Layouts of the key/value cache: what is allocated, and generations that do not depend on it."""

from __future__ import annotations

import dataclasses
import gc
import sys
from types import SimpleNamespace

import pytest
import sympy
import torch

from toprovar_fx.errors import OptionError
from toprovar_fx.live_programs import programs
from toprovar_fx.loading import memory
from toprovar_fx.models.cache import CacheShelf, KVCache
from toprovar_fx.models.cache_memory import CacheSizes
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.models.shared_tail import PagesError
from toprovar_fx.options import Options
from toprovar_fx.program import StepProgram
from toprovar_fx.runtime.report import report_of
from toprovar_fx.schedules import Schedule

from .host_pages import HostPages
from .models.subjects import CONFIG, MANY, MANY_GRAPHS, OPEN, SQUARE, State, TinyInfinity, generate, identical
from .models.traced import Traced
from .small_pipelines import PROMPTS, build

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="maps memory by Linux's calls")
LARGER = Schedule(tuple((side, side) for side in (1, 2, 3, 5, 7, 10)))
LAYOUT_NAMES = ["token_major", "shared"]
LAYOUTS = ["token_major", pytest.param("shared", marks=on_linux)]


class Laid(TinyInfinity):
    """The small Infinity with caches in a layout; `shared` ones are in pages of the host."""

    layout = "plain"

    def state(self, images: int, schedule: Schedule) -> State:
        state = super().state(images, schedule)
        like, kept = state.cache.keys[0], schedule.tokens_before_last
        given = self.model.config, 2 * images, schedule.ends[-1], like.dtype
        sizes = CacheSizes.of(*given, layout=self.layout, kept_tokens=kept)
        if self.layout == "shared":
            found = sizes.shared_in(HostPages())
            assert found is not None
            state.cache.keys, state.cache.values = found
        else:
            state.cache.keys, state.cache.values = sizes.allocate(like.device)
        assert state.cache.keys[0].shape[2] >= like.shape[2]
        assert (state.cache.keys[0].stride() == like.stride()) == (self.layout == "plain")
        return state


@pytest.fixture(scope="module")
def traced() -> dict[str, Traced]:
    """The model by layout, each traced once."""
    found = {}
    for layout in ("plain", "token_major", "shared"):
        subject = Laid()
        subject.layout = layout
        found[layout] = Traced(subject)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {"preset": "lossless"},
        {**OPEN, "keep": MANY},
        {**OPEN, "keep": MANY, "unit": "step"},
        {**OPEN, "keep": MANY, "pruned_kv": "keep", "unit": "step"},
        {**OPEN, "keep": MANY, "restore": "cache"},
        {**OPEN, "keep": {5: 0.5}, "entropy_source": "same_layer"},
        {**OPEN, "cache_policy": "hack", "cache_budget": 0.5},
        {**OPEN, "keep": MANY, "cache_policy": "scalekv", "cache_budget": 0.5},
    ],
    ids=str,
)
def test_a_generation_does_not_depend_on_the_layout(traced, layout, options):
    expected = traced["plain"](options, images=2)
    found = traced[layout](options, images=2)
    assert identical(found.logits, expected.logits)
    assert all(found.arms(scale) == expected.arms(scale) for scale in range(len(SQUARE)))
    assert not report_of(found.run).fallbacks
    assert len(traced[layout].graphs) == len(traced["plain"].graphs)


@on_linux
def test_without_the_backend_tails_hold_the_last_layer_and_prefixes_their_own():
    plain, shared = TinyInfinity(), Laid()
    shared.layout = "shared"
    expected, found = generate(plain, plain.model), generate(shared, shared.model)
    assert identical(found.logits, expected.logits)
    kept, last = SQUARE.tokens_before_last, plain.layers - 1
    for ours, theirs in (
        (found.state.keys, expected.state.keys),
        (found.state.values, expected.state.values),
    ):
        for layer in range(plain.layers):
            assert torch.equal(ours[layer][:, :, :kept], theirs[layer][:, :, :kept])
            assert torch.equal(ours[layer][:, :, 90:130], theirs[last][:, :, 90:130])


def specs_of_caches(regions) -> list:
    """Inputs ``[R, H, slots, D]``."""
    return [spec for region in regions for spec in region.specs if spec.shape and len(spec.shape) == 4]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_schedules_share_a_graph_whose_strides_follow_from_its_shapes(layout):
    """A stride that is a symbol of its own could not be read, and no compilation would be known to hold."""
    torch.compiler.reset()
    subject = Laid(depth=2)
    subject.layout = layout
    # No other test's programs are found by these options.
    options = {"preset": "lossless", "lowering": "eager", "seed": 1000 + LAYOUT_NAMES.index(layout)}
    forward = torch.compile(subject.model, backend="toprovar", options=options)
    with MANY_GRAPHS:
        for schedule in (SQUARE, LARGER, SQUARE):
            found = generate(subject, forward, schedule=schedule)
            assert identical(found.logits, generate(subject, subject.model, schedule=schedule).logits)
    known = [each for each in programs(Options.parse(options)) if isinstance(each, StepProgram)]
    regions = [region for program in known for region in program.regions]
    assert regions
    for region in regions:
        specs = [spec for spec in region.specs if spec.shape is not None]
        sizes = {size for spec in specs for size in spec.shape} | {spec.value for spec in region.specs}
        assert {symbol for spec in specs for step in spec.stride for symbol in step.free_symbols} <= sizes
    assert any(isinstance(spec.shape[2], sympy.Symbol) for spec in specs_of_caches(regions))


def test_conditional_rows_alone():
    cache = KVCache(CacheSizes.of(CONFIG, 4, 20, layout="token_major"))
    part = cache.first(2)
    part.keys[1][:, :, 3] = 1
    assert part.keys[1].shape == (2, 2, 21, 32) and (cache.keys[1][:2, :, 3] == 1).all()
    assert not cache.keys[1][2:].any()


@on_linux
def test_whole_pages_that_cost_more_are_not_mapped():
    pages = HostPages()
    few = CacheSizes.of(CONFIG, 2, 20, layout="shared", kept_tokens=17)
    assert few.shared_in(pages) is None and pages.calls == []
    assert few.memory_bytes() == few.separate_bytes
    # Nothing to share where the last scale is not said.
    assert CacheSizes.of(CONFIG, 2, 130, layout="shared").shared_in(pages) is None


@on_linux
def test_memory_that_torch_holds_is_given_to_the_driver_once(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    sizes = CacheSizes.of(CONFIG, 2, 130, layout="shared", kept_tokens=66)
    pages = HostPages(fail_at=9, out_of_memory=True)
    caches = sizes.shared_in(pages)
    assert caches is not None and len(emptied) == 1 and len(pages.reserved) == 2 * CONFIG.depth
    del caches
    gc.collect()
    assert pages.held == 0
    with pytest.raises(PagesError, match="refused"):
        sizes.shared_in(HostPages(fail_at=9))
    assert len(emptied) == 1


def test_where_nothing_can_be_mapped_caches_are_plain():
    cache = KVCache(CacheSizes.of(CONFIG, 2, 130, layout="shared", kept_tokens=66), "cpu")
    assert cache.keys[0].is_contiguous()


def test_sizes_are_told_by_layout():
    config, schedule = CONFIGS["infinity-2b"], Schedule.infinity()
    needed = {
        layout: CacheSizes.of(
            *(config, 2, schedule.ends[-1], torch.bfloat16),
            layout=layout,
            kept_tokens=schedule.tokens_before_last,
        ).memory_bytes()
        / 2**30
        for layout in ("plain", "token_major", "shared")
    }
    assert needed["plain"] == needed["token_major"] == pytest.approx(5.14, abs=0.01)
    assert needed["shared"] == pytest.approx(3.31, abs=0.01)


def test_the_memory_that_is_told_is_that_of_the_layout(monkeypatch):
    monkeypatch.setattr(memory, "DEFAULT_LAYOUT", "shared")
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    on_cuda = memory.memory_of_named("infinity-2b", "cuda", torch.bfloat16)
    assert on_cuda.cache_bytes / 2**30 == pytest.approx(3.31, abs=0.01)
    assert memory.memory_of_named("infinity-2b", "cpu", torch.bfloat16).cache_bytes / 2**30 > 5


@pytest.mark.parametrize("other", [{"kept_tokens": 60}, {"layout": "plain"}, {"layout": "token_major"}])
def test_another_last_scale_or_layout_gets_another_cache(other, monkeypatch):
    device = PretendedStreams(monkeypatch)
    shelf, given, cpu = CacheShelf(), {"layout": "shared", "kept_tokens": 66}, torch.device("cpu")
    cache = KVCache(CacheSizes.of(CONFIG, 2, 130, **given), cpu)
    shelf._free.append((cache, device))
    assert shelf.take(CacheSizes.of(CONFIG, 2, 130, **given), cpu) is cache
    shelf._free.append((cache, device))
    assert shelf.take(CacheSizes.of(CONFIG, 2, 130, **{**given, **other}), cpu) is not cache


class PretendedStreams:
    """A stream, which is its own event; writes down what is waited for."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)

    def record_event(self):
        self.calls.append("record")
        return self

    def wait_event(self, event):
        self.calls.append("wait on the device")

    def synchronize(self):
        self.calls.append("wait on the host")


def on_cuda(sizes):
    """A cache, as far as a shelf looks at it."""
    tensor = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
    return SimpleNamespace(keys=[tensor], values=[tensor], sizes=sizes)


def test_a_shelf_hands_a_cache_from_stream_to_stream(monkeypatch):
    device, shelf = PretendedStreams(monkeypatch), CacheShelf()
    sizes, other = CacheSizes.of(CONFIG, 2, 130), CacheSizes.of(CONFIG, 2, 120)
    cache = on_cuda(sizes)
    shelf.give(cache)
    assert shelf.take(sizes, torch.device("cuda", 0)) is cache
    assert device.calls == ["record", "wait on the device"]
    # What is freed goes back to the stream that it was allocated on.
    shelf.give(on_cuda(other))
    shelf.give(on_cuda(sizes))
    assert isinstance(shelf.take(sizes, torch.device("cpu")), KVCache)
    assert device.calls[2:] == [
        "record",
        "record",
        *["wait on the host", "wait on the device"],
        "wait on the host",
    ]


def test_a_shelf_asks_for_the_layout(monkeypatch):
    shelf = CacheShelf()
    sizes, cpu = CacheSizes.of(CONFIG, 2, 130), torch.device("cpu")
    plain = KVCache(sizes, cpu)
    device = PretendedStreams(monkeypatch)
    shelf._free.append((plain, device))
    assert shelf.take(sizes, cpu) is plain
    shelf._free.append((plain, device))
    other = shelf.take(CacheSizes.of(CONFIG, 2, 130, layout="token_major", kept_tokens=66), cpu)
    assert other is not plain and not other.keys[0].is_contiguous() and not shelf._free


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layout": "token-major"}, "cache layout 'token-major': .* did you mean 'token_major'"),
        ({"layout": "shared", "kept_tokens": 131}, r"kept_tokens=131: expected a number in 0 .. 130"),
    ],
)
def test_bad_input_is_named(given, message):
    with pytest.raises(OptionError, match=message):
        CacheSizes.of(CONFIG, 2, 130, **given)


def test_a_pipeline_in_another_layout_draws_the_same_image():
    pipe = build()
    expected = pipe(PROMPTS[:1], seed=3)
    pipe.cache_layout = "token_major"
    found = pipe(PROMPTS[:1], seed=3)
    assert torch.equal(found.summed_codes, expected.summed_codes)
    pipe.cache_layout = "packed"
    with pytest.raises(OptionError, match="cache layout 'packed'"):
        pipe(PROMPTS[:1], seed=3)


def test_a_schedule_says_what_later_scales_read():
    assert SQUARE.tokens_before_last == 66 and SQUARE.first(1).tokens_before_last == 0
    assert dataclasses.replace(SQUARE, sides=((1, 1), (2, 2))).tokens_before_last == 1
