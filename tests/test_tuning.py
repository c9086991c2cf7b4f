"""Tuning: prices are what a generation spends, budgets are met, and the search returns its best point."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from toprovar_fx.__main__ import main
from toprovar_fx.backend import toprovar
from toprovar_fx.errors import OptionError
from toprovar_fx.models.configs import CONFIGS
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.options import Options
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.tuning import search
from toprovar_fx.tuning.pricing import Pricer
from toprovar_fx.tuning.space import Point
from toprovar_fx.tuning.trials import Journal, open_trials

POINTS = [
    Point("frequency", None, True, (0.9, 0.5, 0.1)),
    Point("entropy", 0.6, False, (1.0, 0.3, 0.0)),
]


@pytest.fixture(scope="module")
def pipe() -> InfinityPipeline:
    """The demo model with fewer and narrower layers; prices are told from graphs, not from weights."""
    whole = InfinityPipeline.untrained("scenes", device="cpu")
    config = replace(CONFIGS["scenes"], depth=6, width=64, heads=2)
    return InfinityPipeline(Infinity(config).eval(), whole.vae, whole.text_encoder, whole.schedule)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", [pytest.param(POINTS[0], marks=pytest.mark.nightly), POINTS[1]], ids=["frequency", "entropy"]
)
def test_a_point_costs_what_it_was_priced_at(pipe, point):
    prompt = "a red circle"
    pricer = Pricer(pipe, prompt)
    factor = pricer.factor(point, 3.0)
    assert factor is not None
    eager = pipe.transformer
    torch.compiler.reset()
    pipe.transformer = torch.compile(
        eager, backend=toprovar, options={"lowering": "eager", **point.options(factor)}
    )
    try:
        report = pipe([prompt], seed=3).report
    finally:
        pipe.transformer = eager
    spent = report.flops_dense / report.flops
    assert spent == pytest.approx(pricer.speedup(point, factor), rel=1e-9)
    assert 3.0 <= spent <= 3.06
    assert pricer.factor(point, 90.0) is None


class Judge:
    """Stands in for a study: frequency at a large weight of the last scale is best."""

    seen: tuple[str, ...] = ()

    def __init__(self, pipe, n, split, batch, pool) -> None:
        Judge.seen += (split,)
        self.prompts = [type("Prompt", (), {"text": "a red circle"})()]

    def score(self, options):
        options = Options.parse(options)
        keep = dict(options.keep or ())
        change = 0.01 * (options.score == "frequency") + float(keep.get(-1, 0.0)) - 0.5
        return {"overall": 0.9, "change": change, "change_se": 0.0, "psnr_db": 30.0, "flops_share": 0.3}


class Prices:
    def __init__(self, pipe, prompt) -> None:
        pass

    def factor(self, point, target):
        return None if target > 50 else 1.0


@pytest.fixture
def judged(monkeypatch):
    monkeypatch.setattr(Judge, "seen", ())
    monkeypatch.setattr(search, "PairedStudy", Judge)
    monkeypatch.setattr(search, "Pricer", Prices)


def test_the_best_point_of_tune_is_reported_on_test(judged):
    effort = search.Effort(trials=20, n=4, test_n=4, workers=1)
    found = search.tune(None, 3.0, effort)
    assert len(found.trials) == 20 and Judge.seen == ("tune", "test")
    assert found.tune["change"] == max(trial["change"] for trial in found.trials)
    assert found.options == search.tune(None, 3.0, effort).options


def test_a_search_begins_with_the_presets(judged):
    """What is shipped is judged too, so that a search does not end with less."""
    effort = search.Effort(trials=4, n=4, test_n=4, workers=1)
    tried = [trial["options"] for trial in search.tune(None, 3.0, effort).trials]
    for name, options in (("balanced", tried[0]), ("fast", tried[3])):
        preset, found = Options.parse({"preset": name}), Options.parse(options)
        # 100% of the scale before says nothing; the ratios of `Prices` are not solved.
        kept = {scale: ratio for scale, ratio in dict(found.keep).items() if ratio < 1}
        assert kept == dict(preset.keep) and found.scale_exit == preset.scale_exit
        assert found.score == preset.score
        assert (found.ranking_depth, found.entropy_source) == (preset.ranking_depth, preset.entropy_source)
    assert [options["score"] for options in tried] == ["entropy", "frequency"] * 2


def journal(tmp_path, **settings) -> Journal:
    return Journal(tmp_path / "x.json.trials", {"target": 3.0, "n": 4, **settings})


def test_a_search_goes_on_in_its_journal(judged, tmp_path):
    effort = search.Effort(trials=5, n=4, test_n=4, workers=1)
    told = []
    first = search.tune(None, 3.0, effort, told.append, journal(tmp_path))
    assert len(first.trials) == len(told) == 5
    again = search.tune(None, 3.0, effort, told.append, journal(tmp_path))
    assert again == first and len(told) == 5 and Judge.seen == ("tune", "test", "test")
    more = search.tune(None, 3.0, replace(effort, trials=9), told.append, journal(tmp_path))
    assert more.trials[:5] == first.trials and len(more.trials) == len(told) == 9
    with pytest.raises(OptionError, match="is of a search with n=4, not 8"):
        search.tune(None, 3.0, effort, journal=journal(tmp_path, n=8))


def test_a_point_that_was_being_drawn_is_given_up(judged, tmp_path):
    open_trials(journal(tmp_path), seed=0).ask()
    found = search.tune(
        None, 3.0, search.Effort(trials=5, n=4, test_n=4, workers=1), journal=journal(tmp_path)
    )
    assert len(found.trials) == 5


def test_time_that_is_up(judged, tmp_path):
    """One point is tried in any case."""
    effort = search.Effort(trials=5, n=4, test_n=4, workers=1, seconds=0)
    assert len(search.tune(None, 3.0, effort).trials) == 1


def test_several_processes_need_a_journal(judged):
    with pytest.raises(OptionError, match="processes=2: expected 1"):
        search.tune(None, 3.0, search.Effort(processes=2))


def test_a_file_that_is_no_journal(judged, tmp_path):
    (tmp_path / "x.json.trials").write_text("something else\n")
    with pytest.raises(OptionError, match="holds no trials of a search"):
        search.tune(None, 3.0, search.Effort(trials=1), journal=journal(tmp_path))


@pytest.mark.nightly
def test_processes_share_the_points_of_the_demo_model(tmp_path):
    """End to end on two prompts: two processes, one journal, and the best point drawn on the other split."""
    load = partial(InfinityPipeline.from_pretrained, "scenes", dtype=torch.float32)
    effort = search.Effort(trials=2, n=2, test_n=2, batch=2, workers=1, processes=2)
    found = search.tune(load(), 5.0, effort, journal=journal(tmp_path, n=2), again=load)
    assert len(found.trials) >= 2 and {trial["flops_share"] < 0.201 for trial in found.trials} == {True}
    assert found.test["flops_share"] == pytest.approx(found.tune["flops_share"])


def test_a_budget_that_nothing_meets(judged):
    with pytest.raises(OptionError, match="target=60: no setting"):
        search.tune(None, 60.0, search.Effort(trials=3, n=4, test_n=4, workers=1))


def test_the_command_writes_a_preset(judged, tmp_path, monkeypatch, capsys):
    pipe = SimpleNamespace(transformer=SimpleNamespace(dtype=torch.bfloat16))
    monkeypatch.setattr("toprovar_fx.cli.tune.load", lambda *_, **__: pipe)
    out = tmp_path / "three.json"
    given = ["--target", "3x", "--trials", "3", "--n", "4", "--test-n", "4", "--workers", "1"]
    assert main(["tune", *given, "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Options.parse({"preset": str(out)}) == Options.parse(json.loads(out.read_text())["options"])
    assert printed["target"] == 3.0 and len(printed["tried"]) == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--target", "1x"], "--target '1x'"),
        (["--target", "quick"], "--target 'quick'"),
        (["--target", "3x", "--trials", "0"], "--trials is 0"),
        (["--target", "3x", "--processes", "0"], "--processes is 0"),
        (["--target", "3x", "--seconds", "-1"], "--seconds is -1"),
        (["--target", "3x", "--n", "1"], "--n is 1"),
        (["--target", "3x", "--out", "preset.txt"], "ends in .json"),
        (["--target", "3x", "--out", "no/such/folder/x.json"], "a folder that exists"),
    ],
)
def test_bad_input_is_one_line(given, expected, capsys):
    assert main(["tune", *given]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and "\n" not in error
