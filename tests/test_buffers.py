"""Buffers of recordings hold what was passed last, and nothing is copied twice."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from toprovar_fx.runtime.buffers import Buffers


def passed(buffers: Buffers, **sources: Tensor) -> tuple[list[Tensor], int]:
    """The buffers after a call, and how many of them were copied to."""
    found, stale = buffers.find(list(sources), list(sources.values()))
    buffers.fill(stale)
    for buffer, source in zip(found, sources.values(), strict=True):
        assert torch.equal(buffer, source) and buffer.stride() == source.stride()
    return found, len(stale)


def test_what_stays_is_copied_once():
    buffers, text, hidden = Buffers(), torch.rand(2, 3), torch.rand(4)
    first, copied = passed(buffers, text=text, hidden=hidden)
    assert copied == 2
    again, copied = passed(buffers, text=text, hidden=torch.rand(4))
    assert copied == 1 and all(one is other for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("change", ["written", "other memory", "fewer rows", "transposed", "another tensor"])
def test_what_changes_is_copied_again(change):
    buffers, text = Buffers(), torch.rand(3, 3)
    passed(buffers, text=text)
    if change == "written":
        text[0, 0] = 7
    elif change == "other memory":
        text.data = torch.rand(3, 3)
    elif change == "fewer rows":
        text.data = text.data[:2]
    elif change == "transposed":
        text.data = text.data.t()
    else:
        text = text.clone()
        text.add_(0)
    assert passed(buffers, text=text)[1] == 1
    assert passed(buffers, text=text)[1] == 0


def test_tensors_that_take_turns_under_one_name():
    """Of one layout they share a buffer, of two layouts each has its own."""
    buffers, one, other, longer = Buffers(), torch.rand(3), torch.rand(3), torch.rand(5)
    (shared,), _ = passed(buffers, text=one)
    assert passed(buffers, text=other) == ([shared], 1)
    assert passed(buffers, text=one)[1] == 1
    (apart,), copied = passed(buffers, text=longer)
    assert apart is not shared and copied == 1
    assert passed(buffers, text=one)[1] == 0
    assert passed(buffers, text=longer)[1] == 0
    (half,), copied = passed(buffers, text=one.half())
    assert half.dtype == torch.float16 and copied == 1
    assert passed(buffers, text=one) == ([shared], 0)
    square = torch.rand(2, 2)
    assert passed(buffers, text=square)[0][0] is not passed(buffers, text=square.mT)[0][0]


def test_a_new_tensor_is_not_taken_for_one_that_died():
    buffers, text = Buffers(), torch.rand(3)
    passed(buffers, text=text)
    address = id(text)
    del text
    gc.collect()
    for _ in range(50):
        text = torch.rand(3)
        assert passed(buffers, text=text)[1] == 1
        if id(text) == address:
            break
        del text


def test_tensors_without_versions_are_copied_every_time():
    buffers = Buffers()
    with torch.inference_mode():
        text = torch.rand(3)
    assert [passed(buffers, text=text)[1] for _ in range(3)] == [1, 1, 1]


def test_a_tensor_without_versions_does_not_hide_what_happens_to_others():
    buffers, text = Buffers(), torch.rand(3)
    with torch.inference_mode():
        hidden = torch.rand(3)
    assert passed(buffers, text=text, hidden=hidden)[1] == 2
    assert passed(buffers, text=text, hidden=hidden)[1] == 1
    text[0] = 7
    assert passed(buffers, text=text, hidden=hidden)[1] == 2


def test_a_copy_that_failed_is_made_again(monkeypatch):
    buffers, text = Buffers(), torch.rand(3)
    passed(buffers, text=text)
    text.add_(1)

    def fails(*given: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("toprovar_fx.runtime.buffers.copy_all", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            passed(buffers, text=text)
    assert passed(buffers, text=text)[1] == 1


def test_what_a_call_left_undone_is_copied_again():
    """The buffer no longer holds what it did before, and nobody may have read what was copied."""
    buffers, one, other = Buffers(), torch.rand(3), torch.rand(3)
    passed(buffers, text=one)
    (buffer,), stale = buffers.find(["text"], [other])
    with pytest.raises(RuntimeError, match="replay"), buffers.filled(stale):
        assert torch.equal(buffer, other), "copied before the body"
        raise RuntimeError("replay")
    assert passed(buffers, text=one) == ([buffer], 1)
