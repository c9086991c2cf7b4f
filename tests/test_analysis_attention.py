"""Attention nodes read from small graphs: names, arguments, products as labels; the page that lists them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from toprovar_fx.analysis.attention import attention_calls
from toprovar_fx.analysis.attention_forms import FORMS, REFUSED, attention_table
from toprovar_fx.analysis.contractions import read_contraction
from toprovar_fx.analysis.reasons import Reason

from .models import stand_ins

PAGE = Path(__file__).resolve().parent.parent / "docs" / "analysis.md"
OPS = torch.ops.standin
Q, K = (2, 4, 6, 8), (2, 2, 9, 8)


def test_the_page_has_the_table():
    page = PAGE.read_text(encoding="utf-8")
    _, _, rest = page.partition("<!-- attention -->\n")
    table, end, _ = rest.partition("<!-- end of attention -->")
    assert end and table == attention_table()


def test_the_page_names_every_reason_that_concerns_attention():
    page = PAGE.read_text(encoding="utf-8")
    for reason in ("MASKED_ATTENTION", "HANDWRITTEN_ATTENTION", "ATTENTION_VARIANT", "PACKED_ROWS", "RANDOM"):
        assert f"| `{Reason[reason].name}` |" in page


def test_a_name_is_understood_or_refused():
    assert not FORMS.keys() & REFUSED.keys()


def traced(call, *shapes: tuple[int, ...]) -> fx.Graph:
    """A graph of one call on inputs of these shapes, with the values that Dynamo would leave at its nodes."""
    graph = fx.Graph()
    nodes = []
    for at, shape in enumerate(shapes):
        node = graph.placeholder(f"x{at}")
        node.meta["example_value"] = torch.zeros(shape)
        nodes.append(node)
    result = call(graph, *nodes)
    result.meta["example_value"] = torch.zeros(shapes[0])
    graph.output(result)
    return graph


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((None, 0.0, False), {"scale": 0.3, "enable_gqa": True}),
        ((), {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": 0.3, "enable_gqa": True}),
    ],
)
def test_arguments_by_position_and_by_keyword(args, kwargs):
    def call(graph, q, k, v):
        return graph.call_function(F.scaled_dot_product_attention, (q, k, v, *args), kwargs)

    (found,) = attention_calls(traced(call, Q, K, K))
    assert (found.scale, found.grouped, found.mask, found.verdict) == (0.3, True, None, None)
    assert found.query_length == 6


@pytest.mark.parametrize(
    ("function", "before", "argument", "value", "reason"),
    [
        (F.scaled_dot_product_attention, (None,), "dropout_p", 0.1, Reason.RANDOM),
        (F.scaled_dot_product_attention, (None, 0.0), "is_causal", True, Reason.MASKED_ATTENTION),
        (OPS.flash_attn_func.default, (0.0, None), "causal", True, Reason.MASKED_ATTENTION),
        (OPS.flash_attn_func.default, (0.0, None, False), "window_size", [4, 0], Reason.ATTENTION_VARIANT),
        (OPS.flash_attn_func, (0.0, None, False, [-1, -1]), "softcap", 1.0, Reason.ATTENTION_VARIANT),
        (OPS.memory_efficient_attention.default, (), "attn_bias", "causal", Reason.ATTENTION_VARIANT),
    ],
)
@pytest.mark.parametrize("by_keyword", [False, True])
def test_an_argument_that_does_more(function, before, argument, value, reason, by_keyword):
    args = () if by_keyword else (*before, value)
    more = {argument: value} if by_keyword else {}

    def call(graph, q, k, v):
        return graph.call_function(function, (q, k, v, *args), more)

    (found,) = attention_calls(traced(call, Q, Q, Q))
    assert found.verdict is not None and found.verdict.reason is reason
    assert found.verdict.node and found.verdict.detail


def test_a_plain_function_that_dynamo_keeps_whole():
    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None):
        raise NotImplementedError

    def call(graph, q, k, v):
        return graph.call_function(flash_attn_func, (q, k, v, 0.0, 0.7))

    (found,) = attention_calls(traced(call, (2, 6, 4, 8), (2, 9, 4, 8), (2, 9, 4, 8)))
    assert found.scale == 0.7
    assert not found.heads_first
    assert found.query_length == 6


@pytest.mark.parametrize(
    ("equation", "left", "right", "out"),
    [
        ("bhld,bhmd->bhlm", "bhld", "bhmd", "bhlm"),
        (" b l d , b m d -> b l m ", "bld", "bmd", "blm"),
        ("...ld,...md->...lm", (-2, -1, "l", "d"), (-2, -1, "m", "d"), (-2, -1, "l", "m")),
    ],
)
def test_products_by_equation(equation, left, right, out):
    rank = len(out)

    def call(graph, x, y):
        return graph.call_function(torch.einsum, (equation, x, y))

    graph = traced(call, (2,) * rank, (2,) * rank)
    found = read_contraction(next(node for node in graph.nodes if node.op == "call_function"))
    assert found is not None
    assert (found.labels, found.out) == ((tuple(left), tuple(right)), tuple(out))


@pytest.mark.parametrize("equation", ["bij,bjk", "bii,bik->bk", "bij,bjk,bkl->bil", "bhij,bjk->bik"])
def test_equations_that_are_no_products_of_two_tensors_here(equation):
    def call(graph, x, y):
        return graph.call_function(torch.einsum, (equation, x, y))

    graph = traced(call, (2, 2, 2), (2, 2, 2))
    assert read_contraction(next(node for node in graph.nodes if node.op == "call_function")) is None


def test_the_stand_ins_compute_attention():
    q, k, v = (torch.randn(2, 5, 4, 8) for _ in range(3))
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    for found in (stand_ins.flash_attn_func(q, k, v), stand_ins.memory_efficient_attention(q, k, v)):
        torch.testing.assert_close(found, expected)
