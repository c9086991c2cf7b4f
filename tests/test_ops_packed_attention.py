"""The operator for attention to packed texts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.upstream_shims import flash_attn_varlen_kvpacked_func
from toprovar_fx.flops import flop_counter
from toprovar_fx.ops.packed_attention import kernel_number, packed_attention


def operands(dtype):
    lengths = [4, 1, 6]
    q, kv = torch.randn(3, 5, 12, dtype=dtype), torch.randn(11, 2, 2, 6, dtype=dtype)
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return q, kv, starts, 6, 0.3, kernel_number(flash_attn_varlen_kvpacked_func)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_row_reads_its_own_text(dtype):
    q, kv, starts, longest, scale, kernel = operands(dtype)
    found = packed_attention(q, kv, starts, longest, scale, kernel)
    assert found.dtype == dtype and found.shape == q.shape
    for row in range(3):
        k, v = kv[starts[row] : starts[row + 1]].float().unbind(1)
        heads = q[row].float().view(5, 2, 6).transpose(0, 1)
        expected = F.scaled_dot_product_attention(heads, k.transpose(0, 1), v.transpose(0, 1), scale=scale)
        torch.testing.assert_close(
            found[row].float(), expected.transpose(0, 1).flatten(1), atol=2e-2, rtol=2e-2
        )


def test_rows_may_be_left_out():
    q, *rest = operands(torch.float32)
    keep = torch.tensor([3, 0])
    assert torch.equal(packed_attention(q[:, keep], *rest), packed_attention(q, *rest)[:, keep])


def test_it_is_a_well_formed_operator():
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(
            packed_attention, operands(dtype), test_utils=("test_schema", "test_faketensor")
        )


def test_kernels_are_numbered_once():
    assert kernel_number(flash_attn_varlen_kvpacked_func) == kernel_number(flash_attn_varlen_kvpacked_func)
    assert kernel_number(lambda **_: None) != kernel_number(lambda **_: None)


def test_its_operations_are_counted():
    with flop_counter() as counter:
        packed_attention(*operands(torch.float32))
    # Two products of 5 tokens with each of the 11 text rows, width 12; two operations each.
    assert counter.get_total_flops() == 2 * 2 * 5 * 11 * 12
