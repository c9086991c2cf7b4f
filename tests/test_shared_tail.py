"""Caches whose layers share the memory of the last scale's slots: sizes, and pages of the host."""

from __future__ import annotations

import gc
import sys
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toprovar_fx.models.cache_layout import TokenMajor
from toprovar_fx.models.shared_tail import MappedRange, PagesError, give_back, mapped_bytes, shared_caches

from .host_pages import HostPages

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="maps memory by Linux's calls")
GIBIBYTE = 2**30


def layout(pages: HostPages, rows: int = 2, kept: int = 66, slots: int = 131) -> TokenMajor:
    return TokenMajor(rows, 2, slots, 32, 4, kept, pages.page_bytes)


def numbers(limit: int) -> st.SearchStrategy[int]:
    return st.integers(1, limit)


@given(numbers(4), numbers(6), numbers(300), numbers(16), st.sampled_from([2, 4]), st.data())
def test_only_pages_without_kept_slots_are_shared(rows, heads, slots, width, itemsize, data):
    kept = data.draw(st.integers(0, slots))
    page = data.draw(st.sampled_from([8, 64, 4096]))
    lies = TokenMajor(rows, heads, slots, width, itemsize, kept, page)
    assert kept * lies.token_bytes <= lies.own_bytes < kept * lies.token_bytes + page
    assert slots * lies.token_bytes <= lies.row_bytes < slots * lies.token_bytes + page * lies.token_bytes
    assert lies.row_bytes % lies.token_bytes == 0 and lies.shape[2] >= slots
    assert lies.own_bytes % page == lies.tail_bytes % page == 0 <= lies.tail_bytes
    # No two numbers share an address, and all lie within the tensor.
    last = sum((size - 1) * step for size, step in zip(lies.shape, lies.strides, strict=True))
    assert (last + 1) * itemsize <= lies.tensor_bytes
    dense = torch.empty(rows, lies.shape[2], heads, width, device="meta").transpose(1, 2)
    assert lies.strides == dense.stride()
    assert lies.memory_bytes(1) == 2 * lies.tensor_bytes
    assert lies.memory_bytes(5) - lies.memory_bytes(4) == 2 * rows * lies.own_bytes


@pytest.mark.parametrize(("heads", "layers", "gibibytes"), [(16, 32, 3.31), (28, 40, 7.03)])
def test_what_infinity_takes_at_one_megapixel(heads, layers, gibibytes):
    """5.14 GiB (2B) and 11.24 GiB (8B) without sharing."""
    lies = TokenMajor(2, heads, 10522, 128, 2, 6425, 2 * 2**20)
    assert lies.memory_bytes(layers) / GIBIBYTE == pytest.approx(gibibytes, abs=0.01)


@on_linux
def test_tails_are_one_memory_and_prefixes_are_not():
    pages = HostPages()
    lies = layout(pages)
    keys, values = shared_caches(pages, lies, 3, torch.float32)
    assert all(each.shape == lies.shape and each.stride() == lies.strides for each in keys + values)
    assert all(not each.any() for each in keys + values)
    first_shared = -(-lies.own_bytes // lies.token_bytes)
    assert 66 <= first_shared < 131
    for at, each in enumerate(keys + values):
        each[:, :, :66] = at + 1
    keys[0][:, :, first_shared:] = 7
    values[2][:, :, first_shared:] = 8
    for at, each in enumerate(keys + values):
        assert (each[:, :, :66] == at + 1).all()
        assert (each[:, :, first_shared:] == (7 if at < 3 else 8)).all()
    # Batch rows have memory of their own.
    keys[1][1, :, first_shared:] = 9
    assert (keys[2][0, :, first_shared:] == 7).all() and (keys[2][1, :, first_shared:] == 9).all()
    assert len({each.untyped_storage().data_ptr() for each in keys + values}) == 6
    assert all(each._base is None for each in keys + values)


@on_linux
def test_memory_is_counted_and_given_back_with_the_last_view():
    pages = HostPages()
    before = mapped_bytes("cpu")
    keys, values = shared_caches(pages, layout(pages), 2, torch.float32)
    assert not pages.handles and len(pages.reserved) == 4 and len(pages.mapped) == 16
    assert all(pages.allowed[address] == 1 for address in pages.reserved)
    assert mapped_bytes("cpu") - before == layout(pages).memory_bytes(2)
    view = keys[1][:1, :, 3:]
    del keys, values
    gc.collect()
    assert len(pages.reserved) == 1 and mapped_bytes("cpu") > before
    view.fill_(1)
    del view
    gc.collect()
    assert pages.held == 0 and mapped_bytes("cpu") == before
    # Nothing is unmapped that was not waited for.
    ends = [call for call in pages.calls if call in ("wait", "unmap")]
    assert ends == ["wait", *["unmap"] * 4] * 4


@on_linux
def test_what_cannot_be_waited_for_is_given_back_later():
    pages = HostPages()
    caches = shared_caches(pages, layout(pages), 2, torch.float32)
    pages.may_wait = False
    del caches
    gc.collect()
    assert len(pages.retired) == len(pages.reserved) == 4 and len(pages.mapped) == 16
    pages.may_wait = True
    again = shared_caches(pages, layout(pages), 1, torch.float32)
    assert not pages.retired and len(pages.reserved) == 2
    del again
    gc.collect()
    give_back(pages)
    assert pages.held == 0


class Contested(deque[MappedRange]):
    """Another thread takes an element whenever this one is about to, until nothing is left."""

    def popleft(self) -> MappedRange:
        if len(self) > 1:
            self.others.append(super().popleft())
        return super().popleft()


@on_linux
def test_threads_that_give_back_at_once_share_the_work():
    pages = HostPages()
    caches = shared_caches(pages, layout(pages), 2, torch.float32)
    pages.may_wait = False
    del caches
    gc.collect()
    pages.may_wait, pages.retired = True, Contested(pages.retired)
    pages.retired.others = []
    give_back(pages)
    assert len(pages.reserved) == len(pages.retired.others) == 2 and not pages.retired


@on_linux
@pytest.mark.parametrize("kept", [0, 66, 131])
def test_a_refusal_leaves_nothing(kept):
    whole = HostPages()
    caches = shared_caches(whole, layout(whole, kept=kept), 2, torch.float32)
    steps = whole.calls.index("release")
    allocating = [at for at, call in enumerate(whole.calls) if call in ("reserve", "create", "map", "allow")]
    assert len(allocating) > 15 > 0 < steps
    for at in allocating:
        pages = HostPages(fail_at=at)
        with pytest.raises(PagesError, match="refused"):
            shared_caches(pages, layout(pages, kept=kept), 2, torch.float32)
        assert pages.held == 0
    del caches
    gc.collect()
    assert whole.held == 0
