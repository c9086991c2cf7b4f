"""Times of benches in the rows of a table, and methods against each other at equal budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablation_variants import GROUPS
from toprovar_fx.__main__ import main
from toprovar_fx.cli.variants import parse_variant
from toprovar_fx.evaluation.frontier_latency import devices, same_options, with_latency
from toprovar_fx.evaluation.frontier_peers import behind_the_best
from toprovar_fx.reporting.frontier_page import as_markdown
from toprovar_fx.reporting.page import as_page
from toprovar_fx.reporting.parts import Parts

from .browser import check_page
from .frontier_tables import bench, made, row, timed

TWICE = {"preset": "fast", "budget": "2x", "scale_exit": "None"}
TABLE = made(
    {"fast": row("fast", 0.3, options={"preset": "fast"}), "fast at 2x": row("fast", 0.5, options=TWICE)}
)


def test_times_belong_to_rows_of_the_same_options():
    card = bench(
        "NVIDIA H200", timed("inductor", 100.0), timed("eager", 300.0), timed("any name", 40.0, TWICE)
    )
    cpu = bench("x86", timed("eager", 1400.0), timed("fast", 400.0, {"preset": "fast"}))
    table = with_latency(with_latency(TABLE, [card]), [cpu])
    assert devices(table) == ["NVIDIA H200", "CPU x86"]
    assert {name: one["median_ms"] for name, one in table["dense"]["latency"].items()} == {
        "NVIDIA H200": 100.0,
        "CPU x86": 1400.0,
    }
    assert table["dense"]["latency"]["NVIDIA H200"]["name"] == "inductor"
    assert list(table["rows"]["fast"]["latency"]) == ["CPU x86"]
    assert table["rows"]["fast at 2x"]["latency"]["NVIDIA H200"]["speedup_vs_inductor"] == 2.5
    assert "latency" not in TABLE["dense"] and devices(TABLE) == []
    markdown = as_markdown(table).splitlines()
    assert markdown[0].endswith(
        "| FLOPs | ms, NVIDIA H200 | peak MiB, NVIDIA H200 | ms, CPU x86 | peak MiB, CPU x86 |"
    )
    assert markdown[2].endswith("| 100% | 100.0 | 3 | 1400.0 | 3 |")
    assert markdown[3].startswith("| fast at 2x ") and markdown[3].endswith("| 50% | 40.0 | 3 | - | - |")


def test_benches_of_the_axes_have_the_options_of_the_ablation():
    """As docs/frontier.md writes them down."""
    axes = "criterion:entropy_source=previous_scale:ranking_depth=0.615:beta=0.005"
    details = (
        ":prune_layers=false:prune_tokens=false:scale_exit=depth",
        ":prune_layers=false",
        ":prune_tokens=false:layer_skip_below=0.5",
        "",
    )
    page = (Path(__file__).parents[1] / "docs" / "frontier.md").read_text()
    for detail, ablated in zip(details, GROUPS["axes"].values(), strict=True):
        assert detail in page
        variant = parse_variant(axes + detail)
        told = [
            {name: str(value) for name, value in options.items()} for options in (variant.options, ablated)
        ]
        assert same_options({"options": told[0]}, {"options": told[1]})


def test_a_report_joins_quality_and_times(tmp_path):
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    whole = {"scales_median_ms": 1.0, "scales_speedup_vs_inductor": 1.0, "first_call_s": 1.0, "flops": 1.0}
    one = {**timed("fast", 40.0, {"preset": "fast"}), **whole, "kept_share": 1.0}
    (tmp_path / "bench.json").write_text(json.dumps(bench("NVIDIA H200", one)))
    assert (
        main(["report", str(tmp_path / "out"), str(tmp_path / "bench.json"), str(tmp_path / "table.json")])
        == 0
    )
    text = (tmp_path / "out" / "report.html").read_text()
    assert "ms, NVIDIA H200" in text and text.count("<img") == 2, "one plot over FLOPs, one over time"
    assert "ms, NVIDIA H200" in (tmp_path / "out" / "table.md").read_text()
    # The joined table keeps its times when it is joined again.
    assert main(["report", str(tmp_path / "again"), str(tmp_path / "out")]) == 0
    assert "ms, NVIDIA H200" in (tmp_path / "again" / "report.html").read_text()


def test_methods_at_one_budget_are_paired_with_the_best():
    """Of ten prompts in two runs: a peer that loses the same prompts as the best is not apart from it."""

    def at(method: str, overall: float, passes: str, budget: float = 2.0) -> dict[str, Any]:
        return row(method, 0.5, budget=budget, overall=overall, passes=passes, runs=2)

    rows = {
        "fast at 2x": at("fast", 0.90, "2222222222"),
        "random at 2x": at("random", 0.80, "2222222210"),
        "fastvar at 2x": at("fastvar", 0.20, "0000002000"),
        "fast at 3x": at("fast", 0.5, "1" * 10, budget=3.0),
        "fast": row("fast", 0.3),
    }
    best, near, far = behind_the_best(made(rows))
    assert (best.name, best.change, best.change_ci95) == ("fast at 2x", 0.0, 0.0)
    assert near.best == far.best == "fast at 2x" and not near.apart and far.apart
    assert near.change == pytest.approx(-0.15) and far.change == pytest.approx(-0.9)
    # Rows of other runs are not paired.
    rows["random at 2x"]["runs"] = 1
    assert [one.name for one in behind_the_best(made(rows))] == ["fast at 2x", "fastvar at 2x"]


@pytest.mark.browser
def test_a_wide_report_in_a_browser(tmp_path):
    """Two devices, methods at equal budgets, and plots over time: the page does not get wider for them."""
    rows = {
        f"{method} at 2x": row(method, 0.5, budget=2.0, passes=passes, options={**TWICE, "preset": method})
        for method, passes in (("fast", "3333"), ("balanced", "3303"))
    }
    benches = [
        bench(device, *(timed(name, 40.0, one["options"]) for name, one in rows.items()))
        for device in ("NVIDIA H200", "x86")
    ]
    (tmp_path / "page.html").write_text(as_page(Parts(table=with_latency(made(rows), benches))))
    document = check_page(tmp_path / "page.html", 500)
    assert (
        "within the interval" in document and "peak MiB, CPU x86" in document and document.count("<img") == 3
    )
