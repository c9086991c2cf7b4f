"""The kernels of `select_tokens`: interpreted, compiled for Hopper, and on a card against a sort."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from toprovar_fx.criteria.selection import select_tokens as by_sorting
from toprovar_fx.ops.select_tokens import select_tokens, select_tokens_by_layer

from .triton_runs import interpreted, needs_triton

IMAGES, LAYERS = 2, 11


@needs_triton
def test_the_kernels_interpreted():
    cases = interpreted("interpreted_select")
    assert len(cases) >= 60
    assert [name for name, same in cases.items() if not same] == []


@needs_triton
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_kernels_compile_for_hopper(dtype, mean):
    from .kernel_compiler import selection_kernels

    for report in selection_kernels(dtype, mean):
        assert report["spilled"] == 0
        assert report["registers"] <= 128
        # Small numbers are not zeros: they rank as they do in a sort.
        assert ".ftz" not in report["ptx"]


@pytest.mark.parametrize("by_layer", [True, False])
@pytest.mark.parametrize(
    ("rows", "count", "said"), [(3, 5, "3 rows"), (2, 21, "count=21"), (2, -1, "count=-1")]
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_is_not_allowed_is_said_on_any_device(rows, count, said, by_layer, device):
    entropy = torch.rand(rows, 20, device=device)
    with pytest.raises(ValueError, match=said):
        if by_layer:
            select_tokens_by_layer([entropy] * 2, count, 1, "shared", True)
        else:
            select_tokens(entropy, count, 1, "shared", True)


def levels(*shape: int, among: int) -> Tensor:
    """Numbers on a card with many ties, some of them no numbers, infinite, or zeros of the other sign."""
    some = torch.randint(0, among, shape, device="cuda") / among
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0], device="cuda")
    return torch.where(torch.rand_like(some) < 0.02, odd[torch.randint(4, shape, device="cuda")], some)


def counts(length: int) -> list[int]:
    return sorted({1, max(1, length // 3), (length + 1) // 2, length - 1 or 1, length})


@pytest.mark.gpu
@pytest.mark.parametrize("among", [1, 3, 40, 10**6])
@pytest.mark.parametrize(
    "length", [1, 2, 31, 33, 127, 128, 129, 256, 441, 576, 1000, 1024, 1025, 2304, 4096, 5001]
)
def test_the_kernels_find_what_sorting_finds(length, among):
    from toprovar_fx.ops.triton_select import launch

    scores = levels(22, length, among=among)
    for count in counts(length):
        assert torch.equal(launch(scores, count).cpu(), by_sorting(scores.cpu(), count)), count
    # As a view that stands at an odd address.
    view = scores[:, length // 2 :]
    assert torch.equal(launch(view, 1).cpu(), by_sorting(view.cpu(), 1))


@pytest.mark.gpu
@pytest.mark.parametrize("among", [3, 10**6])
@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("rule", ["shared", "cond", "per_row"])
@pytest.mark.parametrize("rows", [IMAGES, 2 * IMAGES])
def test_the_operators_are_those_of_a_cpu(rows, rule, low, among):
    for length in (5, 64, 576, 4096):
        maps = [levels(rows, length, among=among).abs() for _ in range(LAYERS)]
        for count in counts(length):
            given = count, IMAGES, rule, low
            expected = torch.stack([select_tokens(each.cpu(), *given) for each in maps])
            alone = [select_tokens(each, *given) for each in maps]
            together = select_tokens_by_layer(maps, *given)
            assert torch.equal(torch.stack(alone).cpu(), expected)
            assert torch.equal(together.cpu(), expected) and together.is_contiguous()


@pytest.mark.gpu
@pytest.mark.parametrize("low", [True, False])
def test_the_operators_keep_the_rules_on_a_card(low):
    maps = [torch.rand(2 * IMAGES, 70, device="cuda") for _ in range(3)]
    rest: tuple[Any, ...] = 20, IMAGES, "shared", low
    torch.library.opcheck(select_tokens, (maps[0], *rest))
    torch.library.opcheck(select_tokens_by_layer, (maps, *rest))


@pytest.mark.gpu
def test_one_compilation_serves_all_sizes(monkeypatch):
    import triton

    compiled = []
    select_tokens(torch.rand(2, 64, device="cuda"), 16, 1, "shared", True)
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda *, src, **_: compiled.append(src.name))
    for length, count, images in ((1, 1, 1), (16, 16, 8), (577, 100, 3), (4096, 1, 1)):
        whole = torch.rand(2 * images, length, device="cuda")
        select_tokens(whole, count, images, "shared", True)
    # Where a map may stand, too: at an address that is a multiple of 16, or not.
    select_tokens(torch.rand(3, 5, device="cuda").view(-1)[1:11].view(2, 5), 2, 1, "shared", True)
    assert compiled == []


@pytest.mark.gpu
def test_the_layers_of_a_scale_take_two_kernels_and_a_copy():
    maps = [torch.rand(2, 576, device="cuda") for _ in range(22)]
    given = 144, 1, "shared", True
    select_tokens_by_layer(maps, *given)
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        select_tokens_by_layer(maps, *given)
        torch.cuda.synchronize()
    on_card = torch.autograd.DeviceType.CUDA
    ran = [event.name for event in profile.events() if event.device_type == on_card]
    assert len(ran) == 3 and {"ranks_kernel", "gather_kept_kernel"} < set(ran), ran
