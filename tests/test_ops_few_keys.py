"""The kernel for few keys: interpreted, compiled for Hopper, where it is taken, and on a card."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from toprovar_fx.flops import flop_counter
from toprovar_fx.ops import attention

from .test_ops_attention import error_of, for_hopper
from .test_ops_attention import on_card as with_heads
from .triton_runs import interpreted, needs_triton

# Sizes of scales of a model, over its cache and over the text.
LENGTHS = [
    (1, 1),
    (4, 5),
    (16, 21),
    (36, 57),
    (64, 121),
    (144, 265),
    (51, 64),
    (205, 64),
    (400, 64),
    (33, 512),
]


@needs_triton
def test_the_kernel_interpreted() -> None:
    found = interpreted("interpreted_few_keys")
    assert len(found) >= 20
    for name, case in found.items():
        assert case["error"] <= 4e-3, name
        assert case["as it should"], name


@needs_triton
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_the_kernel_compiles_for_hopper(width: int, queries: int, keys: int, parts: int) -> None:
    from toprovar_fx.ops.triton_few_keys import tiles_for

    from .kernel_compiler import few_keys_kernel

    report = few_keys_kernel(width, tiles_for(queries, keys, masked=True), parts)
    assert report["spilled"] == 0
    # Two programs of four warps on a multiprocessor, at least.
    assert report["registers"] <= 255
    assert report["shared"] <= 113 * 2**10


@needs_triton
def test_where_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from toprovar_fx.ops import triton_few_keys as few

    def operands(queries: int, keys: int, heads: int = 16, width: int = 128) -> tuple[Tensor, Tensor, Tensor]:
        shapes = [(2, heads, length, width) for length in (queries, keys, keys)]
        return tuple(torch.empty(shape, dtype=torch.bfloat16) for shape in shapes)  # type: ignore[return-value]

    assert not few.takes(*operands(16, 21), None), "on a CPU"
    monkeypatch.setattr(few, "capability", lambda device: (9, 0))
    for queries, keys in LENGTHS:
        assert few.takes(*operands(queries, keys), None)
        for rows in (1, 2):
            for dtype in (torch.bfloat16, torch.float32):
                assert few.takes(*operands(queries, keys), torch.zeros(rows, 1, 1, keys, dtype=dtype))
    q, k, v = operands(16, 21)
    for other in (
        operands(16, 513),
        operands(4096, 512),
        operands(16, 0),
        operands(0, 21),
        operands(16, 21, width=96),
        operands(16, 21, heads=40000),
        (q.float(), k.float(), v.float()),
        (q, k.half(), v.half()),
        (q, k[:1], v[:1]),
        (q, k, v[:, :, :20]),
        (q, k.mT.contiguous().mT, v),
        (q[:, :9], k[:, :2], v[:, :2]),
    ):
        assert not few.takes(*other, None), [x.shape for x in other]
    for mask in (
        torch.zeros(2, 1, 1, 21, dtype=torch.bool),
        torch.zeros(2, 1, 16, 21),
        torch.zeros(2, 16, 1, 21),
        torch.zeros(16, 21),
        torch.zeros(2, 1, 1, 1),
        torch.zeros(2, 1, 1, 42)[..., ::2],
    ):
        assert not few.takes(q, k, v, mask), mask.shape
    monkeypatch.setattr(few, "capability", lambda device: (8, 0))
    assert not few.takes(*operands(16, 21), None), "on other cards it was not measured"


@pytest.mark.parametrize("shape", [(2, 1, 1, 9), (1, 1, 1, 9), (2, 4, 5, 9), (5, 9)], ids=str)
def test_a_cpu_computes_stock_attention_bit_for_bit(shape: tuple[int, ...]) -> None:
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 6)
    mask = torch.randn(shape).masked_fill(torch.rand(shape) < 0.3, -math.inf)
    found = attention(q, k, v, 0.7, mask)
    assert torch.equal(found, F.scaled_dot_product_attention(q, k, v, mask, scale=0.7, enable_gqa=True))
    assert found.transpose(1, 2).is_contiguous()
    torch.library.opcheck(torch.ops.toprovar.attention.default, (q, k, v, 0.7, mask.nan_to_num(neginf=-9.0)))


def test_its_operations_are_counted() -> None:
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    with flop_counter() as counter:
        attention(q, k, v, 1.0, torch.zeros(2, 1, 1, 9))
    assert counter.get_total_flops() == 4 * 2 * 4 * 5 * 9 * 8


on_card = partial(with_heads, heads=16, key_heads=16)


def padding(keys: int, dtype: torch.dtype, lengths: tuple[int, int]) -> Tensor:
    padded = torch.arange(keys, device="cuda") >= torch.tensor(lengths, device="cuda")[:, None]
    return torch.zeros(padded.shape, device="cuda", dtype=dtype).masked_fill(padded, -math.inf)[:, None, None]


@pytest.fixture
def taken():
    return for_hopper("triton_few_keys").takes


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [64, 128])
def test_the_operator_equals_float64(taken, dtype: torch.dtype, width: int) -> None:
    limit = 2e-2 if dtype == torch.bfloat16 else 3e-3
    for queries, keys in LENGTHS:
        masks = [
            None,
            padding(keys, dtype, (1, keys)),
            padding(keys, torch.float32, (keys, max(1, keys // 2))),
        ]
        for norm in (0.0, 5.0, 100.0):
            inputs = on_card(dtype, queries, keys, width=width, norm=norm)
            for mask in masks:
                assert taken(*inputs, mask)
                found = attention(*inputs, 1.0, mask)
                assert error_of(found, *inputs, mask=mask) <= limit, (queries, keys, norm)


@pytest.mark.gpu
def test_what_is_not_a_number_stays_in_its_sample(taken) -> None:
    q, k, v = on_card(torch.bfloat16, 70, 100)
    k[1, :, 80] = math.nan
    found = attention(q, k, v, 1.0)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


@pytest.mark.gpu
def test_a_sample_without_keys_gets_zeros(taken) -> None:
    q, k, v = on_card(torch.bfloat16, 70, 64)
    mask = padding(64, torch.bfloat16, (0, 64))
    assert taken(q, k, v, mask)
    found = attention(q, k, v, 1.0, mask)
    assert not found[0].any()
    assert found[1].isfinite().all() and found[1].any()


@pytest.mark.gpu
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (64, 121), (205, 64)])
def test_in_a_graph_and_compiled(taken, queries: int, keys: int, fresh_dynamo: None) -> None:
    inputs, mask = on_card(torch.bfloat16, queries, keys), padding(keys, torch.bfloat16, (keys, 1))
    expected = attention(*inputs, 1.0, mask)
    torch.library.opcheck(torch.ops.toprovar.attention.default, (*inputs, 1.0, mask))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attention(*inputs, 1.0, mask)
    for _ in range(3):
        found.zero_()
        graph.replay()
        assert torch.equal(found, expected)
    compiled = torch.compile(
        lambda q, k, v, mask: attention(q, k, v, 1.0, mask).transpose(1, 2).flatten(2) + 1, fullgraph=True
    )
    assert torch.equal(compiled(*inputs, mask), expected.transpose(1, 2).flatten(2) + 1)


@pytest.mark.gpu
def test_one_compilation_serves_the_scales_that_share_tiles(taken, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    attention(*on_card(torch.bfloat16, 16, 21), 1.0)
    compiled: list[str] = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda *, src, **_: compiled.append(src.name))
    for queries, keys in ((2, 3), (17, 32), (64, 1), (33, 16)):
        attention(*on_card(torch.bfloat16, queries, keys), 1.0)
    assert compiled == []
