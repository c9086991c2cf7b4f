from __future__ import annotations

import pytest
import torch

from toprovar_fx.evaluation import memory
from toprovar_fx.evaluation.memory import peak_bytes

MEBIBYTE = 2**20


def fill(mebibytes: int) -> None:
    torch.ones(mebibytes * MEBIBYTE // 4)


def test_the_peak_is_of_the_call_alone() -> None:
    fill(512)
    small, large = peak_bytes(lambda: fill(1), "cpu"), peak_bytes(lambda: fill(256), "cpu")
    if small is None or large is None:
        pytest.skip("this system does not say what the peak was")
    assert 200 * MEBIBYTE < large - small < 320 * MEBIBYTE


def test_none_where_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(memory, "_RESET", type(memory._RESET)(f"{tmp_path}/missing/clear_refs"))
    calls: list[int] = []
    assert peak_bytes(lambda: calls.append(1), "cpu") is None


@pytest.mark.gpu
def test_cuda_counts_allocated_bytes() -> None:
    peak = peak_bytes(lambda: torch.ones(64 * MEBIBYTE // 4, device="cuda"), "cuda")
    assert peak is not None
    assert peak >= 64 * MEBIBYTE
