"""`attention_with_entropy` on CUDA, where it is one kernel; every kernel that the card has is tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from toprovar_fx.ops import attention_with_entropy

pytestmark = pytest.mark.gpu
HALF = (torch.bfloat16, torch.float16)
# Output, absolute at values of size 1; entropy, absolute in nats.
OUT = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
NATS = {torch.float32: 0.0, torch.float16: 1e-3, torch.bfloat16: 2e-3}
Kernel = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(params=["operator", "plain", "plain without maps", "hopper", "hopper turns"])
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """The operator, and each kernel by itself."""
    launching = pytest.importorskip("toprovar_fx.ops.triton_launch")
    tiles: dict[str, Any] = {
        "plain": launching.Tiles(64, 64, 4, 2, True),
        "plain without maps": launching.Tiles(64, 64, 4, 2),
        "hopper": launching.HopperTiles(128, 2),
        "hopper turns": launching.HopperTiles(64, 3, True, True),
    }
    if request.param == "operator":
        yield attention_with_entropy
        return
    if "hopper" in request.param and (
        torch.cuda.get_device_capability() != (9, 0) or not launching.GLUON_KNOWN
    ):
        pytest.skip("for compute capability 9.0")
    yield partial(launching.launch, tiles=tiles[request.param])


def unit(*shape: int, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(*shape, device="cuda"), dim=-1).to(dtype)


def inputs(
    dtype: torch.dtype,
    heads: int = 4,
    key_heads: int = 4,
    queries: int = 150,
    keys: int = 391,
    width: int = 128,
    norm: float = 5.0,
) -> tuple[Tensor, Tensor, Tensor]:
    q = (norm * unit(2, heads, queries, width, dtype=torch.float32)).to(dtype)
    k = unit(2, key_heads, keys, width, dtype=dtype)
    return q, k, torch.randn(2, key_heads, keys, width, device="cuda").to(dtype)


def agrees(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0, first_key: int = 0) -> Tensor:
    """Compare with float64; return the entropies [B, H, Lq]."""
    keys, values = (x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    s = scale * q.double() @ keys.mT
    logp = torch.log_softmax(s[..., first_key:], -1)
    nats = -(logp.exp() * logp).sum(-1)
    # Logits are sums in fp32, whose error is relative to their size.
    atol = NATS[q.dtype] + 2e-7 * (1 + float(s.abs().max()))
    for mean in (True, False):
        out, entropy = kernel(q, k, v, scale, mean, first_key)
        assert (out.double() - s.softmax(-1) @ values).abs().max() <= OUT[q.dtype]
        torch.testing.assert_close(entropy.double(), nats.mean(1) if mean else nats, rtol=1e-5, atol=atol)
        assert entropy.min() >= 0
        assert out.transpose(1, 2).is_contiguous()
    return entropy


def allowed(kernel: Kernel, dtype: torch.dtype) -> bool:
    tiles = getattr(kernel, "keywords", {}).get("tiles")
    return dtype in HALF or tiles is None


@pytest.mark.parametrize("dtype", OUT, ids=str)
@pytest.mark.parametrize("norm", [0.0, 10.0, 100.0])
@pytest.mark.parametrize("first_key", [0, 300])
def test_equals_the_float64_oracle(kernel: Kernel, dtype: torch.dtype, norm: float, first_key: int) -> None:
    if not allowed(kernel, dtype):
        pytest.skip("float32 needs tiles of its own")
    agrees(kernel, *inputs(dtype, norm=norm), first_key=first_key)


@pytest.mark.parametrize("width", [32, 48, 64, 80, 96, 128, 256])
def test_widths_of_heads(kernel: Kernel, width: int) -> None:
    tiles = getattr(kernel, "keywords", {}).get("tiles")
    if width == 256 and getattr(tiles, "keys", 0) * getattr(tiles, "stages", 0) > 128:
        pytest.skip("more than the shared memory")
    agrees(kernel, *inputs(torch.bfloat16, width=width), scale=width**-0.5)


@pytest.mark.parametrize("width", [32, 64, 128, 192])
def test_widths_of_heads_in_float32(width: int) -> None:
    agrees(attention_with_entropy, *inputs(torch.float32, width=width))


@pytest.mark.parametrize(
    ("queries", "keys", "first_key"),
    [(1, 1, 0), (1, 500, 499), (128, 256, 0), (129, 257, 128), (64, 127, 63), (1000, 33, 7)],
)
def test_lengths(kernel: Kernel, queries: int, keys: int, first_key: int) -> None:
    entropy = agrees(kernel, *inputs(torch.bfloat16, queries=queries, keys=keys), first_key=first_key)
    if keys - first_key == 1:
        assert entropy.max() < 1e-6


@pytest.mark.parametrize("shape", [(576, 1497), (4096, 10521)])
def test_shapes_of_a_model_of_two_billion(kernel: Kernel, shape: tuple[int, int]) -> None:
    q, k, v = inputs(torch.bfloat16, heads=2, key_heads=2, queries=shape[0], keys=shape[1], norm=20.0)
    agrees(kernel, q, k, v, first_key=shape[1] - shape[0])


def test_uniform_and_sharp_rows(kernel: Kernel) -> None:
    q, k, v = inputs(torch.bfloat16, norm=0.0)
    assert abs(float(agrees(kernel, q, k, v).mean()) - math.log(391)) < 1e-5
    assert agrees(kernel, 100 * k, k, v).median() < 1e-6


def test_grouped_heads(kernel: Kernel) -> None:
    agrees(kernel, *inputs(torch.bfloat16, heads=6, key_heads=2))


def test_views_of_a_cache_whose_rest_is_not_a_number(kernel: Kernel) -> None:
    q, k, v = inputs(torch.bfloat16)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    room = torch.full((2, 2, 4, 500, 128), math.nan, device="cuda", dtype=torch.bfloat16)
    room[0, :, :, :391], room[1, :, :, :391] = k, v
    agrees(kernel, q, room[0, :, :, :391], room[1, :, :, :391])


def test_strides_that_no_tensor_map_describes() -> None:
    q, k, v = (
        torch.randn(2, 4, rows, 129, device="cuda").bfloat16()[..., 1:] / 3 for rows in (150, 391, 391)
    )
    agrees(attention_with_entropy, q, k, v)
    q, k, v = (x.mT.contiguous().mT for x in (q, k, v))
    agrees(attention_with_entropy, q, k, v)


def test_what_is_not_a_number_stays_so_in_its_sample_alone(kernel: Kernel) -> None:
    q, k, v = inputs(torch.bfloat16)
    k[1, :, 300] = math.nan
    for mean in (True, False):
        out, entropy = kernel(q, k, v, 1.0, mean)
        assert entropy[0].isfinite().all()
        assert out[0].isfinite().all()
        assert entropy[1].isnan().all()
        assert out[1].isnan().all()


def test_the_mean_of_heads_is_deterministic(kernel: Kernel) -> None:
    q, k, v = inputs(torch.bfloat16, heads=16, key_heads=16, queries=700)
    first = kernel(q, k, v, 1.0)
    for _ in range(5):
        for one, other in zip(kernel(q, k, v, 1.0), first, strict=True):
            assert torch.equal(one, other)


def test_opcheck_and_capture_in_a_graph() -> None:
    q, k, v = inputs(torch.bfloat16, queries=70)
    torch.library.opcheck(torch.ops.toprovar.attention_with_entropy.default, (q, k, v, 0.5, True, 3))
    expected = attention_with_entropy(q, k, v, 0.5)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attention_with_entropy(q, k, v, 0.5)
    for _ in range(3):
        graph.replay()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_inductor_keeps_it_in_one_graph_of_any_length(fresh_dynamo: None) -> None:
    def both(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, entropy = attention_with_entropy(q, k, v, 1.0, True, k.shape[2] - q.shape[2])
        return out.transpose(1, 2).flatten(2) + 1, entropy * 2

    compiled = torch.compile(both, fullgraph=True, dynamic=True)
    for queries, keys in ((50, 90), (70, 200), (110, 310)):
        arguments = inputs(torch.bfloat16, queries=queries, keys=keys)
        with torch.compiler.set_stance("default" if queries == 50 else "fail_on_recompile"):
            found = compiled(*arguments)
        for one, other in zip(found, both(*arguments), strict=True):
            torch.testing.assert_close(one, other)
