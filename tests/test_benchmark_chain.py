"""`benchmarks.layer_chain` runs the products of a layer one after another."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import Parameter
from torch.nn import functional as F

from benchmarks import layer_chain
from benchmarks.layer_chain import EPS, Layer, main, measure
from toprovar_fx.models.configs import config_named

SMALL = replace(config_named("infinity-2b"), width=32, heads=2, text_pool_heads=2)
CPU = torch.device("cpu")


def test_a_layer_is_its_six_products() -> None:
    layer = Layer(SMALL, CPU, torch.Tensor.detach)
    assert layer.weight_bytes == 2 * (3 + 3 + 4 + 4) * 32 * 32
    hidden, normed = torch.randn(2, 1, 5, 32).bfloat16().unbind()
    x = F.linear(normed, layer.qkv).reshape(1, 15, 32)[:, :5]
    expected = hidden
    for square in layer.squares:
        expected = expected + F.linear(x, square)
        x = F.layer_norm(expected, (32,), eps=EPS)
    inner = F.gelu(F.linear(x, layer.first), approximate="tanh")
    expected = expected + F.linear(inner, layer.second)
    found = layer(hidden, normed)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], F.layer_norm(expected, (32,), eps=EPS))


def test_both_chains_are_timed_on_equal_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[type, float]] = []
    plain = layer_chain.linear

    def watched(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append((type(weight), float(weight.float().sum())))
        return plain(x, weight)

    monkeypatch.setattr(layer_chain, "linear", watched)
    (row,) = measure(SMALL, [3], 2, CPU, rounds=1)
    assert row.rows == 3 and row.usual_us > 0 and row.ahead_us > 0 and row.floor_us is None
    of = {kind: [value for own, value in seen if own is kind] for kind in (torch.Tensor, Parameter)}
    assert of[torch.Tensor] == of[Parameter] and len(set(of[Parameter])) == 2


def test_it_prints_a_table_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layer_chain, "config_named", lambda name: SMALL)
    main(["--rows", "1,4", "--layers", "1", "--rounds", "1", "--device", "cpu"])
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 3
    record = json.loads(last)
    assert record["benchmark"] == "layer_chain" and [row["rows"] for row in record["rows"]] == [1, 4]
