"""The quality-cost table: intervals, equal budgets, what cannot be reached, and its three forms."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from toprovar_fx.__main__ import main
from toprovar_fx.errors import OptionError, OutputError
from toprovar_fx.evaluation import frontier as module
from toprovar_fx.evaluation.features import image_features, real_features
from toprovar_fx.evaluation.frontier_store import RowStore
from toprovar_fx.evaluation.study import PairedStudy, judges
from toprovar_fx.options import Options
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.preset_files import write_preset
from toprovar_fx.scenes.prompts import eval_prompts

CATEGORIES = dict.fromkeys(
    ("single_object", "two_objects", "counting", "colors", "position", "color_attribution"), 0.5
)

PIPE = SimpleNamespace(transformer=SimpleNamespace(dtype=torch.bfloat16))


class Study:
    """Verdicts by a rule: run r fails prompt r when dense, and the pruned ones fail prompt 0 as well."""

    drawn: ClassVar[list[tuple[int, str]]] = []
    refused: ClassVar[set[str]] = set()
    given: ClassVar[list[Any]] = []
    real = torch.ones(1)
    unreachable: ClassVar[set[tuple[int, float]]] = {(0, 4.0), (1, 4.0)}

    def __init__(self, pipe, n, split, batch, pool, run=0, frechet=False) -> None:
        assert split == "test" and (frechet is True or frechet is self.real)
        self.given.append(frechet)
        self.run, self.categories = run, dict(list(CATEGORIES.items())[:n])
        self.drawn.append((run, "dense"))
        self.dense_scores = [at != run for at in range(n)]
        self.baseline = {"overall": 0.9, "categories": self.categories, "frechet": 0.1, "seconds": 1.0}

    def start(self, options):
        budget = Options.parse(options).budget
        self.drawn.append((self.run, f"{options['preset']} {budget or ''}".strip()))
        if options.get("policy") in self.refused:
            raise OptionError("a file is not there yet")
        if (self.run, budget) in self.unreachable:
            raise OptionError("budget='4x': too much")
        passed = [one and at > 0 for at, one in enumerate(self.dense_scores)]
        share = 1 / budget if budget else 0.5
        figures = {"psnr_db": None, "ssim": 0.9, "frechet": 0.2, "gflop_per_image": 1.0, "flops_share": share}
        return {"passed": passed, "overall": 0.8, "categories": self.categories, **figures}

    def finish(self, row):
        return row


@pytest.fixture(autouse=True)
def measured(monkeypatch) -> list[tuple[int, str]]:
    """What was drawn: run and options."""
    monkeypatch.setattr(module, "PairedStudy", Study)
    monkeypatch.setattr("toprovar_fx.cli.frontier.load", lambda *_, **__: PIPE)
    monkeypatch.setattr(Study, "drawn", [])
    monkeypatch.setattr(Study, "given", [])
    return Study.drawn


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open, self.cells, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_command_writes_all_forms(tmp_path, capsys):
    given = ["--preset", "@criterion", "--preset", "fast", "--budgets", "2x,4x", "--runs", "2", "--n", "5"]
    folder = tmp_path / "new" / "folder"
    assert main(["eval", *given, "--table", str(folder), "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["rows"]) == {"criterion", "criterion at 2x", "fast"}
    assert result["left_out"] == {"criterion at 4x": "budget='4x': too much"}
    assert (result["dtype"], result["batch"], result["budgets"]) == ("bfloat16", 4, "2x,4x")
    assert result["presets"] == "@criterion fast"
    row = result["rows"]["criterion at 2x"]
    # Run 0: prompt 0 fails anyway; run 1: it fails because of pruning. Over prompts: -1/2, 0, 0, 0, 0.
    by_prompt = np.array([-0.5, 0, 0, 0, 0])
    assert row["change"] == pytest.approx(by_prompt.mean())
    assert row["change_ci95"] == pytest.approx(1.96 * by_prompt.std(ddof=1) / math.sqrt(5))
    assert row["runs"] == 2 and row["psnr_db"] is None and row["flops_share"] == 0.5
    assert {entry.name for entry in folder.iterdir()} == {
        *(f"table.{kind}" for kind in ("json", "md", "html", "png")),
        "rows.jsonl",
    }
    assert (row["passes"], result["dense"]["passes"]) == ("01222", "11222")
    # The true scenes are those of all runs: their features are made once.
    assert Study.given == [True, Study.real]
    assert result["image_seeds"].startswith("100000 r + i") and result["split"] == "test"
    page = Cells()
    page.feed((folder / "table.html").read_text())
    assert "criterion at 2x" in page.cells and "-0.100 ± 0.196" in page.cells
    assert page.sources and all(source.startswith("data:") for source in page.sources)
    assert "| dense | 0.900 |" in (folder / "table.md").read_text()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "at least one --preset"),
        (["--preset", "eager"], "prunes nothing"),
        (["--preset", "@fast", "--budgets", "2x,0x"], "--budgets '0x'"),
        (["--preset", "fast", "--runs", "0"], "--runs is 0"),
        (["--preset", "fast", "--runs", "10"], "--runs is 10, expected an integer in 1 .. 9"),
        (["--preset", "fast", "--n", "1"], "--n is 1, expected 2 or more"),
        (["--preset", "fast", "--seconds", "0"], "--seconds is 0"),
        (["--preset", "fast", "--seed", "3"], "--seed does not go with --table"),
        (["--preset", "fast", "--held-out"], "--held-out does not go with --table"),
        (["--preset", "@eager"], "prunes nothing"),
    ],
)
def test_bad_input_is_one_line(given, expected, tmp_path, capsys):
    assert main(["eval", *given, "--table", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def tabulate(folder: Path, *given: str) -> dict[str, Any]:
    assert main(["eval", "--table", str(folder), "--device", "cpu", *given]) == 0
    return json.loads((folder / "table.json").read_text())


FAST = ("--preset", "fast", "--n", "5", "--runs", "2")


def test_a_table_of_too_few_prompts_for_a_category(tmp_path):
    table = tabulate(tmp_path, "--preset", "fast", "--n", "2", "--runs", "1")
    assert list(table["rows"]["fast"]["categories"]) == ["single_object", "two_objects"]
    assert (
        "| fast | 0.800 | +0.000 ± 0.000 | 0.50 | 0.50 | - | - | - | - |"
        in (tmp_path / "table.md").read_text()
    )
    assert main(["report", str(tmp_path / "page"), str(tmp_path)]) == 0


def test_what_is_asked_for_twice_is_measured_once(tmp_path, measured):
    table = tabulate(tmp_path, *FAST, "--preset", "@fast", "--budgets", "2x,2.0x", "--runs", "1")
    assert list(table["rows"]) == ["fast", "fast at 2x"]
    assert measured == [(0, "dense"), (0, "fast"), (0, "fast 2.0")]


def test_a_table_goes_on_where_it_was(tmp_path, measured):
    """Rows that are there are not measured again; new ones, and new runs, are added."""
    whole = tabulate(tmp_path / "whole", *FAST, "--preset", "balanced")
    part = tmp_path / "part"
    tabulate(part, *FAST, "--runs", "1")
    measured.clear()
    table = tabulate(part, *FAST, "--preset", "balanced")
    assert measured == [(0, "dense"), (0, "balanced"), (1, "dense"), (1, "fast"), (1, "balanced")]
    assert table == whole
    measured.clear()
    assert tabulate(part, *FAST) == whole and not measured


def test_a_line_that_was_cut_off_is_measured_again(tmp_path, measured):
    whole = tabulate(tmp_path, *FAST)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text()[:-30])
    measured.clear()
    assert tabulate(tmp_path, *FAST) == whole
    assert measured == [(1, "dense"), (1, "fast")]
    rows.write_text(rows.read_text()[:20])
    assert tabulate(tmp_path, *FAST) == whole


def test_a_table_is_not_written_over_and_not_read_before_it_is_there(tmp_path, measured, capsys):
    tabulate(tmp_path / "out", *FAST)
    (tmp_path / "out" / "table.json").unlink()
    assert main(["report", str(tmp_path / "page"), str(tmp_path / "out")]) == 2
    assert "no table yet: run the same `toprovar eval --table` again" in capsys.readouterr().err
    tabulate(tmp_path / "out", *FAST)
    assert main(["report", str(tmp_path / "page"), str(tmp_path / "out")]) == 0
    measured.clear()
    joined = ["eval", "--table", str(tmp_path / "page"), *FAST, "--device", "cpu"]
    assert main(joined) == 2 and not measured
    assert "holds a table without its rows" in capsys.readouterr().err


def test_rows_of_other_settings_are_refused(tmp_path, monkeypatch, capsys):
    preset = tmp_path / "mine.json"
    monkeypatch.chdir(tmp_path)

    def store(keep: float) -> None:
        write_preset(preset, {"preset": "criterion", "keep": {-1: keep}}, {})

    store(0.1)
    given = ["eval", "--table", "out", "--preset", "mine.json", "--n", "5", "--runs", "1", "--device", "cpu"]
    assert main(given) == 0
    for changed, expected in (
        ([*given, "--n", "6"], "'out' was measured with n=5, not 6"),
        ([*given, "--batch", "3"], "'out' was measured with batch=4, not 3"),
    ):
        assert main(changed) == 2
        assert expected in capsys.readouterr().err
    store(0.2)
    assert main(given) == 2
    assert "'mine.json' was measured with other options before" in capsys.readouterr().err
    for damaged in ("[1]", '{"format": "toprovar-fx rows"}', '{"format": "toprovar-fx rows", "settings": 3}'):
        (tmp_path / "out" / "rows.jsonl").write_text(f"{damaged}\n")
        assert main(given) == 2
        assert "holds no measured rows" in capsys.readouterr().err


def test_a_row_that_one_run_lacks_is_paired_with_its_own_run(tmp_path, monkeypatch):
    """4x cannot be reached in run 0: its row is of run 1, where dense fails prompt 1 and not prompt 0."""
    monkeypatch.setattr(Study, "unreachable", {(0, 4.0)})
    table = tabulate(tmp_path, *FAST, "--preset", "@criterion", "--budgets", "4x")
    row = table["rows"]["criterion at 4x"]
    assert row["runs"] == 1 and row["passes"] == "00111" and row["change"] == pytest.approx(-0.2)
    assert table["left_out"] == {}


def test_what_was_left_out_is_tried_again_with_other_options(tmp_path, measured):
    given = (
        "--preset",
        f"skipvar:preset=fast:classifier={tmp_path / 'late.json'}",
        "--n",
        "5",
        "--runs",
        "1",
    )
    Study.refused.add("skipvar")
    (why,) = tabulate(tmp_path / "out", *given)["left_out"].values()
    assert "not there yet" in why
    Study.refused.clear()
    tabulate(tmp_path / "out", *given)
    assert measured == [(0, "dense"), (0, "fast")], "a reason that has not changed is not tried again"
    (tmp_path / "late.json").write_text("now it is there")
    table = tabulate(tmp_path / "out", *given)
    assert len(table["rows"]) == 1 and table["left_out"] == {} and len(measured) == 4


def test_a_budget_that_is_not_kept_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "finish", lambda self, row: {**row, "flops_share": 0.52})
    table = tabulate(tmp_path, *FAST, "--preset", "@criterion", "--budgets", "1.9x,2x")
    assert list(table["rows"]) == ["fast", "criterion", "criterion at 1.9x"]
    assert table["left_out"]["criterion at 2x"].startswith("took 52% of the FLOPs")


def test_time_that_is_up(tmp_path, monkeypatch, measured):
    """The dense row is drawn in any case, and what is begun is finished."""
    times = iter([0.0, 0.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(times, math.inf)))
    table = tabulate(tmp_path, *FAST, "--preset", "balanced", "--seconds", "1")
    assert measured == [(0, "dense"), (0, "fast")]
    assert list(table["rows"]) == ["fast"] and table["runs"] == 1


@pytest.mark.parametrize("name", ["budgets", "runs", "seconds", "workers"])
def test_options_of_tables_alone(name, capsys):
    assert main(["eval", "--preset", "fast", f"--{name}", "3"]) == 2
    assert f"--{name} needs --table" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.nightly
def test_a_study_of_the_demo_model():
    """Other runs are other images of the same prompts; what prunes nothing changes nothing."""
    pipe = InfinityPipeline.from_pretrained("scenes", dtype=torch.float32)
    with judges(1) as pool, torch.inference_mode():
        first = PairedStudy(pipe, 2, "test", 2, pool, frechet=True)
        other = PairedStudy(pipe, 2, "test", 2, pool, run=1)
        row = first.score({"preset": "lossless"})
    assert [prompt.text for prompt in first.prompts] == [prompt.text for prompt in other.prompts]
    assert not np.array_equal(first.dense, other.dense) and other.baseline["frechet"] is None
    assert row["passed"] == first.dense_scores and row["change"] == 0 and row["psnr_db"] is None
    assert row["frechet"] == first.baseline["frechet"]
    assert row["match"] == first.baseline["match"] >= row["overall"]
    features = image_features(pipe.vae, first.dense)
    assert features.shape == (2, 2 * pipe.vae.config.bsq.bits) and features.isfinite().all()
    assert real_features(pipe.vae, eval_prompts(3)).shape == (3, features.shape[1])


def test_a_second_process_does_not_write_into_the_rows(tmp_path):
    path, settings = tmp_path / "rows.jsonl", {"n": 5}
    store = RowStore(path, settings)
    store.add(0, "dense", {"x": 1})
    with pytest.raises(OutputError, match="is being written by another process"):
        RowStore(path, settings)
    store.add(0, "fast", {"x": 2})
    del store
    assert RowStore(path, settings).names() == ["dense", "fast"]
