"""Sampling, code sum and resampling between two scales: the same with and without a recording."""

from __future__ import annotations

import pytest
import torch

from toprovar_fx.between_scales import BetweenScales
from toprovar_fx.models.bsq import BSQConfig, MultiScaleBSQ
from toprovar_fx.runtime.cuda_graphs import GraphMemory
from toprovar_fx.runtime.recorded_function import RecordedFunction
from toprovar_fx.sampling import sample_bits

from .models.recorders import CpuRecorder

SIDES = ((1, 1), (2, 3), (4, 4))
BITS = 5
SETTINGS = {"cfg": 3.0, "tau": 0.7, "top_p": 0.9}
LIKELY = {"cfg": 1.5, "tau": 0, "top_p": 1.0}


@pytest.fixture
def recorder(monkeypatch) -> CpuRecorder:
    made = CpuRecorder()
    monkeypatch.setattr("toprovar_fx.between_scales.memory_of", lambda device: GraphMemory(made, False))
    return made


def quantizer(sides=SIDES) -> MultiScaleBSQ:
    return MultiScaleBSQ(BSQConfig(BITS, sides, 1))


def given(images: int, scale: int, sides=SIDES, seed: int = 0, dtype=torch.float32):
    """Logits with guidance rows, noise, and the sum so far."""
    source = torch.Generator().manual_seed(seed)
    tokens = sides[scale][0] * sides[scale][1]
    logits = torch.randn(2 * images, tokens, 2 * BITS, generator=source).to(dtype)
    uniform = torch.rand(images, tokens, BITS, generator=source)
    summed = torch.randn(images, BITS, *sides[-1], generator=source)
    return logits, uniform, summed


def expected(logits, uniform, summed, scale, sides=SIDES, **settings):
    ours = quantizer(sides)
    bits = sample_bits(logits, uniform, **settings)
    total = ours.accumulate(summed, bits, scale)
    return bits, total, ours.next_input(total, scale) if scale + 1 < len(sides) else None


def assert_same(found, wanted) -> None:
    """Bits, sum and tokens are equal; without an embedding there is no more."""
    assert len(found) == 3 or found.hidden is None
    for mine, its in zip(found[:3], wanted[:3], strict=True):
        assert (mine is None and its is None) or torch.equal(mine, its)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    "settings", [SETTINGS, {"cfg": 1.5, "tau": 0, "top_p": 1.0}], ids=["drawn", "likely"]
)
def test_every_scale_is_what_its_parts_compute(recorded, settings, monkeypatch, request):
    made = request.getfixturevalue("recorder") if recorded else None
    between = BetweenScales(quantizer(), "cpu")
    for seed in range(3):
        for scale in range(len(SIDES)):
            for images in (1, 2):
                inputs = given(images, scale, seed=seed)
                assert_same(between(*inputs, scale, **settings), expected(*inputs, scale, **settings))
    if made is not None:
        assert made.records == 6 and made.replays == 18


def test_what_was_returned_is_never_written_again(recorder):
    between = BetweenScales(quantizer(), "cpu")
    first = between(*given(1, 1), 1, **SETTINGS)
    kept = [value.clone() for value in first[:3]]
    between(*given(1, 1, seed=7), 1, **SETTINGS)
    assert_same(first, kept)


def test_settings_and_schedule_are_part_of_a_recording(recorder):
    ours = quantizer()
    between = BetweenScales(ours, "cpu")
    inputs = given(1, 1)
    for settings in (
        SETTINGS,
        {**SETTINGS, "cfg": 1.2},
        {**SETTINGS, "tau": 2.0},
        {**SETTINGS, "top_p": 0.6},
    ):
        assert_same(between(*inputs, 1, **settings), expected(*inputs, 1, **settings))
    other = (*SIDES[:2], (6, 4))
    ours.set_schedule(other)
    inputs = given(1, 1, other)
    assert_same(between(*inputs, 1, **SETTINGS), expected(*inputs, 1, other, **SETTINGS))
    assert recorder.records == 5


def test_a_sum_in_another_layout_is_recorded_anew(recorder):
    between = BetweenScales(quantizer(), "cpu")
    logits, uniform, summed = given(2, 1)
    for layout in (summed, summed.contiguous(memory_format=torch.channels_last)):
        assert_same(
            between(logits, uniform, layout, 1, **SETTINGS), expected(logits, uniform, layout, 1, **SETTINGS)
        )
    assert recorder.records == 2


def test_what_cannot_be_recorded_runs_as_it_is():
    made = CpuRecorder(fails="no")
    recorded = RecordedFunction(lambda x, by: (x * by,), GraphMemory(made, False))
    for value in (1.0, 2.0):
        (found,) = recorded({"x": torch.tensor([value])}, by=3)
        assert found.item() == 3 * value
    assert made.replays == 0


def test_recordings_do_not_grow_without_end(recorder):
    made = CpuRecorder()
    recorded = RecordedFunction(lambda x, by: (x * by,), GraphMemory(made, False))
    for by in range(100):
        (found,) = recorded({"x": torch.ones(2)}, by=by)
        assert found.tolist() == [by, by]
    assert made.records == len(recorded._recordings) == 64


@pytest.mark.gpu
def test_on_a_device_the_graph_computes_what_the_kernels_compute():
    between = BetweenScales(quantizer().cuda(), "cuda")
    plain = quantizer().cuda()
    for seed in range(3):
        for scale in range(len(SIDES)):
            inputs = [value.cuda() for value in given(2, scale, seed=seed, dtype=torch.bfloat16)]
            bits = sample_bits(inputs[0], inputs[1], **SETTINGS)
            total = plain.accumulate(inputs[2], bits, scale)
            found = between(*inputs, scale, **SETTINGS)
            assert torch.equal(found.bits, bits) and torch.equal(found.summed, total)
            if scale + 1 < len(SIDES):
                assert torch.equal(found.tokens, plain.next_input(total, scale))
