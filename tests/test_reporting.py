"""The report: parts recognised by their content, a section for each that is given, and none that is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from toprovar_fx.__main__ import main

from .browser import check_page
from .frontier_tables import made, row
from .html_pages import Cells, Checker
from .profiles import made as calibrated

BENCH = {
    "name": "balanced",
    "median_ms": 71.24,
    "spread": 0.02,
    "speedup_vs_inductor": 1.5,
    "scales_median_ms": 60.0,
    "scales_speedup_vs_inductor": None,
    "first_call_s": 9.0,
    "flops": 4e9,
    "kept_share": 0.4,
    "peak_memory_bytes": 2**28,
}
FIT = {"samples": 6, "accuracy": 0.75, "most_common": 0.5, "leaves_out_too_much": 0.125}
TAP = {"generation_ms": 20.0, "scales_ms": 10.0, "cost_of_generation": 0.0123, "cost_of_scales": 0.02}


def ablated(change: float) -> dict[str, Any]:
    return {
        "overall": 0.7,
        "change": change,
        "change_se": 0.01,
        "psnr_db": None,
        "ssim": 1.0,
        "flops_share": 0.5,
    }


def documents() -> dict[str, dict[str, Any]]:
    """One small document of every kind, as the commands write them."""
    kernel = {
        "heads": 16,
        "queries": 576,
        "keys": 1497,
        "fastest_us": 20.0,
        "us": {"triton": 21.0, "flash": 20.0},
    }
    return {
        "bench": {
            "command": "bench",
            "device_name": "NVIDIA H200",
            "graphs_compiled_while_timing": 0,
            "variants": [BENCH],
        },
        "ablation": {
            "n": 1200,
            "split": "test",
            "dense": {"overall": 0.71},
            "rows": {
                "axes: scale": ablated(-0.2),
                "axes: scale + token": ablated(0.0),
                "rows: each": ablated(0),
            },
        },
        "kernel": {
            "device": "NVIDIA H200",
            "gemm_tflops": [700.0, 701.0],
            "means": {"flash": 1.0, "triton": 1.05},
            "results": [{**kernel, "deviation": {"triton": [1e-3, 2e-6]}}],
        },
        "taps": {"benchmark": "taps", "presets": {"balanced": {"online": {**TAP, "whole_layers_tapped": 3}}}},
        "profile": calibrated().to_json(),
        "preset": {
            "format": "toprovar-preset",
            "target": 3.0,
            "options": {"score": "<entropy>"},
            "tune": ablated(0.01),
            "test": ablated(-0.004),
            "tried": [{}, {}],
        },
        "classifier": {
            "settings": {"model": "scenes", "n": 8},
            **{stage: {"fitted": FIT, "held_out": {**FIT, "samples": 2}} for stage in ("skip", "uncond")},
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("parts")
    for name, document in documents().items():
        # What a command printed before its JSON does not matter.
        (folder / f"{name}.json").write_text(f"some table\n{json.dumps(document)}\n")
    table = made(
        {"fast": row("fast", 0.3), "fast at 2x": row("fast", 0.5)}, left_out={"fast at 9x": "<too> much"}
    )
    (folder / "table.json").write_text(json.dumps(table))
    (folder / "pictures").mkdir()
    image = {"variant": "dense", "file": "a.png", "psnr_db": None, "ssim": 1.0, "sceneeval_pass": True}
    pruned = {**image, "variant": "fast", "psnr_db": 21.5, "sceneeval_pass": None, "flops_share": 0.3}
    token = {"variant": "fast", "scale": 8, "side": [24, 24], "kept_share": 0.1, "file": "a.png"}
    rows = [
        {
            "prompt": "a <cat>",
            "seed": 3,
            "images": [{**image, "flops_share": None}, pruned],
            "tokens": [token],
        }
    ]
    gallery = {"format": "toprovar-fx gallery", "model": "scenes", "rows": rows}
    (folder / "pictures" / "gallery.json").write_text(json.dumps(gallery))
    Image.new("RGB", (16, 16), "red").save(folder / "pictures" / "a.png")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    parts = [str(folder / f"{name}.json") for name in (*documents(), "table")]
    assert main(["report", str(out), *parts, str(folder / "pictures")]) == 0
    return out / "report.html"


SECTIONS = ["frontier", "times", "ablations", "presets", "classifiers", "entropy-cost", "scales", "gallery0"]
SECTIONS += ["sources"]


def test_the_page_has_a_section_for_every_part(page):
    text = page.read_text()
    assert re.findall(r'<section id="([\w-]+)">', text) == SECTIONS
    checker = Checker()
    checker.feed(text)
    # Nothing is loaded: links stay in the page, pictures are in it.
    outside = [
        what for what in checker.wrong if not what.startswith(("a href=#", "img src=data:image/png;base64,"))
    ]
    assert (outside, checker.open) == ([], [])
    assert not re.search(r"https?://|@import|url\(", text)
    assert text.count("<img") == 1 + 2 + 3, "the frontier, a profile's two, a gallery's three"
    assert "&lt;too&gt; much" in text and "a &lt;cat&gt;" in text


def test_settings_are_told_and_results_are_not(page):
    said = re.findall(r'<p class="soft">([^<]*)</p>', page.read_text())
    assert "model scenes, device NVIDIA H100, torch 2.13.0, n 1200, runs 3" in said
    assert "device NVIDIA H200" in said and "n 1200, split test" in said
    assert not any("{" in text for text in said)


def test_the_tables_say_what_was_measured(page):
    cells = Cells()
    cells.feed(page.read_text())
    rows = {cells[0]: cells[1:] for cells in cells.rows if cells}
    assert rows["fast at 2x"][:2] == ["0.700", "-0.010 ± 0.004"]
    assert rows["balanced"] == ["online", "20.0", "10.0", "1.2%", "2.0%", "3"], "the later table's row"
    assert rows["scale"] == ["0.700", "-0.200 ± 0.020", "equal", "1.000", "50%"]
    assert rows["triton"] == ["1.050", "1e-03", "2e-06", "1.050"] and rows["flash"][1:3] == ["-", "-"]
    assert rows["test"] == ["0.700", "-0.004 ± 0.020", "-", "50%"]
    assert ["skip", "held out", "2", "75%", "50%", "12%"] in cells.rows
    bench = next(cells for cells in cells.rows if cells and cells[0] == "balanced" and cells[1] == "71.2")
    assert bench[2:] == ["2%", "1.50", "60.0", "-", "9.0", "4.0", "40%", "256"]


@pytest.mark.parametrize(
    ("name", "sections"),
    [("bench", ["times", "sources"]), ("table", ["frontier", "sources"]), ("profile", ["scales", "sources"])],
)
def test_what_is_not_given_is_left_out(name, sections, folder, tmp_path):
    assert main(["report", str(tmp_path), str(folder / f"{name}.json")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert re.findall(r'<section id="([\w-]+)">', text) == sections
    assert (tmp_path / "table.json").exists() == (name == "table")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read"),
        ("{", "holds no JSON object"),
        ("[1]", "holds no JSON object"),
        ('{"n": 3}', "of no known kind, expected what one of these wrote: toprovar calibrate"),
        ('{"command": "bench", "variants": [{"name": "x"}]}', "lacks the entry 'median_ms'"),
        ('{"command": "bench", "variants": 3}', "has an unexpected entry"),
        ("[" * 100_000, "holds no JSON object"),
        ('{"format": "toprovar-fx profile", "version": 99}', "version 99, expected version 1"),
        (
            '{"format": "toprovar-fx gallery", "rows": [{"prompt": "x", "seed": 0, "tokens": [], "images": '
            '[{"variant": "dense", "file": "no.png", "sceneeval_pass": null, "flops_share": null}]}]}',
            "cannot read the picture",
        ),
    ],
)
def test_bad_parts_are_one_line(content, expected, tmp_path, capsys):
    path = tmp_path / "part.json"
    if content is not None:
        path.write_text(content)
    assert main(["report", str(tmp_path / "out"), str(path)]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and "\n" not in error and not (tmp_path / "out").exists()


def test_nothing_twice_and_an_empty_folder(folder, tmp_path, capsys):
    out, path = str(tmp_path / "out"), str(folder / "bench.json")
    for parts, expected in (
        ([], "there is nothing to report"),
        ([path, path], "is given twice"),
        ([str(tmp_path)], "has 0 of table.json and gallery.json"),
    ):
        assert main(["report", out, *parts]) == 2
        assert expected in capsys.readouterr().err


def test_measurements_are_not_written_over(folder, tmp_path, capsys):
    """Whoever forgets OUT names a part in its place."""
    before = (folder / "table.json").read_bytes()
    assert main(["report", str(folder), str(folder / "bench.json")]) == 2
    assert "holds table.json and no report" in capsys.readouterr().err
    assert (folder / "table.json").read_bytes() == before and not (folder / "report.html").exists()
    # A report may be made again.
    for _ in range(2):
        assert main(["report", str(tmp_path / "out"), str(folder / "table.json")]) == 0


@pytest.mark.browser
@pytest.mark.parametrize("width", [500, 1400])
def test_the_report_in_a_browser(page, width):
    document = check_page(page, width)
    assert document.count("<section") == len(SECTIONS)


@pytest.mark.browser
def test_the_table_of_eval_in_a_browser(page):
    document = check_page(page.with_name("table.html"), 500)
    assert "fast at 2x" in document and "<nav>" not in document
