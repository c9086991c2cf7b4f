"""Fitting `skipvar`'s classifiers: labels, figures on held-out prompts, the file, and studies that use it."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from benchmarks import skip_classifier as script
from benchmarks.skip_classifier_fit import Sample, classifiers
from toprovar_fx.evaluation.study import PairedStudy
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.policies.classifier import load_classifier
from toprovar_fx.scenes import eval_prompts

from .models.subjects import SQUARE
from .small_pipelines import build
from .test_policy_skipvar import always


class Inline:
    """A pool that does the work at once."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, call, *given):
        done = Future()
        done.set_result(call(*given))
        return done


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_are_what_passes(monkeypatch, dtype):
    """Untrained images hold no object, so every way finds what dense finds, and similarity alone decides."""
    pipe = build(SQUARE).to(dtype=dtype)
    monkeypatch.setattr(script, "CHUNK", 2)
    prompts = eval_prompts(3)
    easy = script.observe(pipe, prompts, 5, -1.0, Inline())
    assert [(sample.skip, sample.uncond) for sample in easy] == [(3, 3)] * 3
    none = script.observe(pipe, prompts, 5, 1.1, Inline())
    assert [(sample.skip, sample.uncond) for sample in none] == [(0, 0)] * 3
    assert [sample.features for sample in none] == [sample.features for sample in easy]
    # A batch decides nothing about its images.
    alone = script.observe(pipe, prompts[1:2], 6, -1.0, Inline())
    if dtype == torch.float32:
        assert alone[0].features == pytest.approx(easy[1].features, rel=1e-4)


def test_more_passes_only_after_less():
    ways = np.array([[True, False, True], [True, True, False], [False, True, True]])
    assert script._most(ways) == [2, 0, 1]


def separable(n: int) -> list[Sample]:
    """Little change: 3 scales can be left out; much: none, and rows by the high frequencies."""
    rng = np.random.default_rng(0)
    found = []
    for change, share in rng.uniform(0, 1, (n, 2)):
        found.append(Sample((change, share), 3 * int(change < 0.5), 2 if share < 0.5 else 1))
    return found


def test_the_fit_and_its_figures():
    samples = separable(400)
    found = classifiers(samples)
    assert found["skip"]["samples"] == 300 and found["skip"]["held_out"]["samples"] == 100
    assert found["uncond"]["classes"] == [1, 2]
    for stage in ("skip", "uncond"):
        held_out = found[stage]["held_out"]
        assert held_out["accuracy"] > 0.93 > held_out["most_common"] + 0.2
        assert held_out["leaves_out_too_much"] <= 1 - held_out["accuracy"]
    # One class only, and nothing left for the second stage.
    (one,) = classifiers([Sample((0.1, 0.2), 3, 1)] * 8)["skip"]["classes"]
    assert one == 3


def test_a_risk_bounds_what_is_left_out_too_much():
    """Features that say nothing: the more careful, the less is left out, on unseen prompts alike."""
    rng = np.random.default_rng(1)
    labels = rng.choice(4, 4000, p=[0.02, 0.08, 0.3, 0.6])
    samples = [Sample(tuple(rng.normal(size=2)), int(label), 0) for label in labels]
    found = {risk: classifiers(samples, risk)["skip"] for risk in (1.0, 0.2, 0.05)}
    assert found[1.0]["fitted"]["mean_decided"] == 3.0
    for risk in (0.2, 0.05):
        assert found[risk]["fitted"]["leaves_out_too_much"] <= risk
        assert found[risk]["held_out"]["leaves_out_too_much"] < 1.4 * risk
        # No more is given up than the risk asks for.
        assert found[risk]["fitted"]["leaves_out_too_much"] > 0.9 * risk
    decided = [found[risk]["fitted"]["mean_decided"] for risk in (1.0, 0.2, 0.05)]
    assert decided == sorted(decided, reverse=True)


def test_the_script_writes_a_file_that_the_policy_takes_and_goes_on(monkeypatch, tmp_path, capsys):
    drawn = []

    def observe(pipe, prompts, seed, least, pool):
        drawn.append(seed)
        return separable(len(prompts))

    monkeypatch.setattr(script, "observe", observe)
    monkeypatch.setattr(script, "judges", lambda workers: Inline())
    monkeypatch.setattr(InfinityPipeline, "from_pretrained", lambda *_, **__: build(SQUARE))
    out = tmp_path / "mine.json"
    given = ["--n", "20", "--batch", "8", "--device", "cpu", "--out", str(out)]
    assert script.main([*given, "--seconds", "0"]) == 0
    assert drawn == [1_000_000] and json.loads(out.read_text())["settings"]["n"] == 8
    assert script.main(given) == 0
    assert drawn == [1_000_000, 1_000_008, 1_000_016]
    written = json.loads(out.read_text())
    assert written["skip"]["held_out"]["samples"] == 5
    assert (
        json.loads(capsys.readouterr().out.splitlines()[-1])["skip"]["held_out"]
        == written["skip"]["held_out"]
    )
    assert load_classifier(str(out))["skip"].decide((0.1, 0.5)) == 3


def test_a_study_draws_images_among_their_like(tmp_path, fresh_dynamo):
    """In a batch the most careful image decides; in a study each counts as if it were drawn alone."""
    pipe = build(SQUARE)
    change = sorted(sample.features[0] for sample in script.observe(pipe, eval_prompts(5), 0, 0.0, Inline()))
    rest = {"intercepts": [0.0, 0.0], "mean": [(change[1] + change[2]) / 2, 0.0], "std": [1.0, 1.0]}
    careful = {"classes": [0, 3], "coefficients": [[1.0, 0.0], [-1.0, 0.0]], **rest}
    path = tmp_path / "careful.json"
    path.write_text(json.dumps({**always(0), "skip": careful}))
    options = {"policy": "skipvar", "classifier": str(path)}
    together, alone = (PairedStudy(pipe, 5, "test", batch, Inline()).start(options) for batch in (5, 1))
    assert sorted((batch.images, batch.exited_at) for batch in together.batches) == [(2, 3), (3, None)]
    assert [batch.exited_at for batch in alone.batches].count(3) == 2
    # What is kept of a batch are figures: the tensors of a report would be gigabytes.
    assert len(pickle.dumps(together.batches)) < 10_000
    assert together.similarity == pytest.approx(alone.similarity, abs=0.05)
    flops = [sum(batch.flops for batch in row.batches) for row in (together, alone)]
    assert flops[0] == flops[1]
