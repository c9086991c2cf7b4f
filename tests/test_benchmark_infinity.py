"""The Infinity benchmark runs on any machine, and loses nothing when it is cut short."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import infinity, infinity_kernels
from benchmarks.infinity_measure import generate
from benchmarks.infinity_roof import Roof
from benchmarks.infinity_variants import MODELS, Problem, budget, toprovar_options
from toprovar_fx.options import Options


def test_a_tiny_run(tmp_path, capsys):
    out, picture = tmp_path / "rows.jsonl", tmp_path / "scales.png"
    variants = "eager,lossless,50-10"
    command = ["--tiny", "--lowering", "eager", "--variants", variants, "--batch", "1,2"]
    assert infinity.main([*command, "--out", str(out), "--plot", str(picture)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["variant"], row["images"]) for row in rows] == [
        (variant, images) for images in (1, 2) for variant in variants.split(",")
    ]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["rows"] == rows and not result["failed"]
    scales = len(MODELS["tiny"][1])
    assert all(len(row["step_ms"]) == scales and row["transformer_ms"] > 0 for row in rows)
    dense, pruned = rows[1], rows[2]
    assert dense["notes"] == pruned["notes"] == []
    assert 0.1 < pruned["flops"] / dense["flops"] < 0.5
    assert dense["dense_ms"] is None and pruned["dense_ms"] > 0 < pruned["dense_first_s"]
    assert picture.stat().st_size > 1000


def test_a_roof_is_the_longer_of_two(many_graphs):
    """By scale, of the sizes that ran: FLOPs where memory is fast, bytes where products are."""
    problem = Problem("tiny", "cpu", torch.float32)
    options = {"preset": "lossless", "lowering": "eager"}
    report = generate(problem, torch.compile(problem.model, backend="toprovar", options=options), 1).report
    by_flops = Roof(flops_per_s=1e9, bytes_per_s=1e30).floors_ms(report)
    by_bytes = Roof(flops_per_s=1e30, bytes_per_s=1e9).floors_ms(report)
    assert sum(by_flops) == pytest.approx(1e3 * report.flops / 1e9)
    assert by_flops == sorted(by_flops) and by_bytes == sorted(by_bytes), "later scales have more tokens"
    # The first scale reads the weights of the blocks at least.
    weights = [weight for block in problem.model.blocks() for weight in block.parameters()]
    assert by_bytes[0] > 1e3 * 0.9 * sum(weight.nbytes for weight in weights) / 1e9
    both = Roof(flops_per_s=1e9, bytes_per_s=1e9).floors_ms(report)
    assert both == [max(pair) for pair in zip(by_flops, by_bytes, strict=True)]


def test_a_layout_of_the_caches(capsys):
    command = ["--tiny", "--lowering", "eager", "--variants", "eager", "--cache", "token_major"]
    assert infinity.main(command) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "token_major caches" in first and json.loads(last)["cache"] == "token_major"


def test_no_variant_starts_after_the_time(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert infinity.main(["--tiny", "--variants", "eager", "--seconds", "0", "--out", str(out)]) == 0
    assert not out.exists()
    assert "not run" in json.loads(capsys.readouterr().out.splitlines()[-1])["failed"]["eager, batch 1"]


def test_an_unknown_variant_is_named():
    with pytest.raises(SystemExit, match="--variants fastest: expected some of eager, inductor"):
        infinity.main(["--tiny", "--variants", "fastest"])


@pytest.mark.parametrize("name", ["2b", "8b"])
def test_the_budgets_are_those_of_the_issue(name):
    """From side 32 on, a quarter of the layers keeps the first share and the others the second."""
    config, schedule = MODELS[name]
    keep = budget(name, config.depth, schedule, 0.5, 0.1)["keep"]
    assert [schedule.sides[scale][0] for scale in keep] == [32, 40, 48, 64]
    for by_layer in keep.values():
        assert sorted(by_layer) == list(range(config.depth))
        assert [list(by_layer.values()).count(ratio) for ratio in (0.5, 0.1)] == [
            config.depth // 4,
            config.depth * 3 // 4,
        ]
    for options in toprovar_options(name, config.depth, schedule).values():
        assert Options.parse(options)


def test_a_profile_of_some_scales(capsys):
    infinity_kernels.main(["--tiny", "--lowering", "eager", "--variant", "lossless", "--scales", "0,2"])
    first, total, *rows = capsys.readouterr().out.strip().splitlines()
    assert first == "tiny lossless, scales 0 to 1:" and total.endswith("calls")
    assert any("aten::" in row for row in rows)
    with pytest.raises(SystemExit, match="--scales 5,99: expected 0 <= FIRST < END <= 6"):
        infinity_kernels.main(["--tiny", "--lowering", "eager", "--variant", "lossless", "--scales", "5,99"])
