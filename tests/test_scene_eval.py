import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

from scipy import ndimage

from toprovar_fx.errors import ToProVARError
from toprovar_fx.evaluation import (
    Detection,
    EvalReport,
    SceneEval,
    detect,
    fulfils,
    mismatched_prompts,
    prompt_match,
    score_images,
)
from toprovar_fx.scenes import (
    EvalPrompt,
    Requirement,
    eval_prompts,
    render,
    sample_scenes,
    scenes_for_prompts,
)
from toprovar_fx.scenes.vocab import COLOURS, SHAPES

N = 150


def pixels(scenes):
    # A few at a time: the renderer's planes then stay in the processor's cache.
    images = torch.cat([render(scenes[i : i + 4]) for i in range(0, len(scenes), 4)])
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def prompts():
    return eval_prompts(N, seed=0)


@pytest.fixture(scope="module")
def images(prompts):
    return pixels(scenes_for_prompts(prompts, seed=1))


@pytest.fixture(scope="module")
def found(images):
    return [detect(image) for image in images]


def share(found, prompts):
    return EvalReport.from_scores([fulfils(f, p) for f, p in zip(found, prompts, strict=True)], prompts)


@pytest.mark.slow
def test_ground_truth_scores_all(found, prompts):
    report = share(found, prompts)
    assert report.overall >= 0.99
    assert min(report.categories.values()) >= 0.96


def test_wrong_prompts_score_nothing(found, prompts):
    wrong = mismatched_prompts(prompts)
    assert [p.category for p in wrong] == [p.category for p in prompts]
    assert sorted(p.text for p in wrong) == sorted(p.text for p in prompts)
    assert share(found, wrong).overall < 0.05


def test_held_out_combinations_are_seen_as_well():
    prompts = eval_prompts(48, seed=2, held_out=True)
    images = pixels(scenes_for_prompts(prompts, seed=3))
    assert SceneEval(prompts).report(images).overall >= 0.98


def test_mild_blur_and_noise_do_no_harm(images, prompts):
    """An image autoencoder of about 30 dB."""
    rng = np.random.default_rng(0)
    blurred = ndimage.gaussian_filter(images.astype(np.float32), (0, 0.8, 0.8, 0))
    noisy = np.clip(blurred + rng.normal(0, 6, images.shape), 0, 255).astype(np.uint8)
    assert SceneEval(prompts).report(noisy).overall >= 0.97


def test_detections_are_the_objects_of_the_scene():
    scenes = sample_scenes(40, device="cpu", seed=21)
    for i, image in enumerate(pixels(scenes)):
        n = int(scenes.n[i])
        truth = sorted(
            (SHAPES[s], COLOURS[c]) for s, c in zip(scenes.shape[i], scenes.colour[i], strict=True)
        )[:0]
        truth = sorted((SHAPES[int(scenes.shape[i, k])], COLOURS[int(scenes.colour[i, k])]) for k in range(n))
        seen = detect(image)
        assert sorted((d.shape, d.colour) for d in seen) == truth
        centres = torch.stack([scenes.cx[i, :n], scenes.cy[i, :n]], dim=1)
        for detection in seen:
            offset = centres - torch.tensor([detection.cx, detection.cy])
            assert offset.norm(dim=1).min() < 0.3 * float(scenes.radius[i, :n].max())


def test_a_bare_background_holds_no_object():
    scenes = sample_scenes(24, device="cpu", seed=5)
    empty = replace(scenes, cx=torch.full_like(scenes.cx, -1e4), cy=torch.full_like(scenes.cy, -1e4))
    assert all(detect(image) == [] for image in pixels(empty))


def at(shape, colour, x, y):
    return Detection(shape, colour, x, y, 3000, 0.9)


@pytest.mark.parametrize(
    ("relation", "holds"), [("left of", True), ("right of", False), ("above", False), ("below", False)]
)
def test_relations(relation, holds):
    prompt = EvalPrompt("position", "", (Requirement("circle"), Requirement("star")), relation)
    assert fulfils([at("star", "red", 190, 130), at("circle", "red", 60, 120)], prompt) is holds


def test_relations_need_a_margin():
    prompt = EvalPrompt("position", "", (Requirement("circle"), Requirement("star")), "left of")
    assert not fulfils([at("circle", "red", 118, 60), at("star", "red", 132, 190)], prompt)


def test_counts_are_exact_but_other_objects_do_no_harm():
    prompt = EvalPrompt("counting", "two circles", (Requirement("circle", None, 2),))
    two = [at("circle", "red", 60, 128), at("circle", "blue", 190, 128)]
    assert fulfils(two, prompt)
    assert fulfils([*two, at("star", "red", 128, 30)], prompt)
    assert not fulfils(two[:1], prompt)
    assert not fulfils([*two, at("circle", "red", 128, 30)], prompt)


def test_colours_are_bound_to_their_shapes():
    wanted = (Requirement("circle", "red"), Requirement("star", "blue"))
    prompt = EvalPrompt("color_attribution", "", wanted)
    assert fulfils([at("circle", "red", 60, 128), at("star", "blue", 190, 128)], prompt)
    assert not fulfils([at("circle", "blue", 60, 128), at("star", "red", 190, 128)], prompt)
    assert not fulfils([at("circle", "red", 60, 128)], prompt)


def test_a_match_counts_the_facts_that_hold():
    wanted = (Requirement("circle", "red"), Requirement("star", "blue"))
    prompt = EvalPrompt("position", "", wanted, "left of")
    circle, star = at("circle", "red", 60, 128), at("star", "blue", 190, 128)
    assert prompt_match([circle, star], prompt) == 1
    assert prompt_match([replace(circle, colour="green"), star], prompt) == pytest.approx(2 / 3)
    assert prompt_match([replace(circle, cx=240.0), star], prompt) == pytest.approx(2 / 3)
    assert prompt_match([circle], prompt) == pytest.approx(1 / 3)
    assert prompt_match([], prompt) == 0
    three = EvalPrompt("counting", "", (Requirement("circle", None, 3),))
    assert [prompt_match([circle] * n, three) for n in (0, 2, 3, 4)] == pytest.approx([0, 2 / 3, 1, 3 / 4])


def test_a_match_is_whole_where_the_prompt_is_fulfilled(found, prompts):
    wrong = mismatched_prompts(prompts)
    for image, right, other in zip(found, prompts, wrong, strict=True):
        for prompt in (right, other):
            assert (prompt_match(image, prompt) == 1) == fulfils(image, prompt)
    assert np.mean([prompt_match(f, p) for f, p in zip(found, wrong, strict=True)]) < 0.4


def test_the_report_means_over_categories():
    prompts = [EvalPrompt("colors", "", ()), EvalPrompt("counting", "", ()), EvalPrompt("counting", "", ())]
    report = EvalReport.from_scores([True, False, False], prompts)
    assert report.overall == 0.5
    assert json.loads(report.to_json()) == {
        "overall": 0.5,
        "categories": {"counting": 0.0, "colors": 1.0},
        "n": 3,
    }


def test_workers_give_the_same_scores(images, prompts):
    wrong = mismatched_prompts(prompts)
    mixed = [*prompts[:6], *wrong[6:12]]
    assert (
        score_images(images[:12], mixed, workers=2)
        == score_images(images[:12], mixed)
        == [True] * 6 + [False] * 6
    )


def test_prompts_with_one_meaning_cannot_be_mismatched():
    left = EvalPrompt("position", "", (Requirement("circle"), Requirement("star")), "left of")
    right = EvalPrompt("position", "", (Requirement("star"), Requirement("circle")), "right of")
    with pytest.raises(ToProVARError, match="too few different prompts"):
        mismatched_prompts([left, right])


def test_bad_images_are_refused(images, prompts):
    with pytest.raises(ToProVARError, match="expected uint8"):
        score_images(images[:1].astype(np.float32), prompts[:1])
    with pytest.raises(ToProVARError, match="2 images for 1 prompts"):
        score_images(images[:2], prompts[:1])
