"""`benchmarks.layer_products` times a layer's matrix products against the roofline."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.infinity_roof import Roof
from benchmarks.layer_products import Product, Row, main, measure, products, run_of, show
from toprovar_fx.models.configs import config_named


def test_the_products_are_those_of_a_layer():
    """Their weights are what a layer holds, but for keys and values of the text, which no token reads."""
    config = config_named("infinity-2b")
    found = products(config)
    width = config.width
    assert sum(each.times * each.outputs * each.inputs for each in found) == width * width * (3 + 3 + 4 + 4)
    assert [each.gelu for each in found] == [False, False, True, False]


def test_every_weight_is_read(monkeypatch):
    read: list[int] = []
    monkeypatch.setattr("benchmarks.layer_products.F.linear", lambda x, weight, bias: read.append(id(weight)))
    weights = [torch.ones(3, 4) for _ in range(3)]
    run_of(Product("any", 3, 4), torch.ones(2, 4), weights, torch.ones(3))()
    assert read == [id(weight) for weight in weights]


def test_the_floor_is_bytes_or_operations():
    roof = Roof(flops_per_s=1e11, bytes_per_s=1e11)
    small, large = measure(Product("any", 64, 32), [1, 64], torch.device("cpu"), roof, 1, [2])
    assert small.memory_us > 0 and small.cache_us > 0 and not small.parts_us
    assert small.floor_us == pytest.approx((2 * 64 * 32 + 2 * (32 + 64)) / 1e5)
    assert large.floor_us == pytest.approx(2 * 64 * 64 * 32 / 1e5)


def test_its_last_line_is_json(capsys):
    main(["--rows", "2", "--repeats", "1", "--device", "cpu"])
    *table, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert [row["times"] for row in record["rows"]] == [1, 3, 1, 1]
    assert table[-1].startswith("all products of a layer, 2 rows: ")


def test_parts_have_columns(capsys):
    show([Row("any", 1, rows, 9.0, 7.0, {2: 8.0, 4: 6.5}, 5.0) for rows in (2, 32)])
    title, *rows = capsys.readouterr().out.splitlines()[:3]
    assert title.split()[-4:] == ["2", "parts", "4", "parts"]
    assert [row.split()[-2:] for row in rows] == [["8.0", "6.5"]] * 2
