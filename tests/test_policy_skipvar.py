"""`skipvar`: its features, its decisions, and the scales and rows that it leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from toprovar_fx.backend import toprovar
from toprovar_fx.errors import OptionError
from toprovar_fx.options import Options
from toprovar_fx.policies.classifier import FOLDER, load_classifier
from toprovar_fx.policies.high_frequency import high_frequency_share, sobel_change
from toprovar_fx.runtime.generation import generation
from toprovar_fx.schedules import Schedule

from .models.fixtures import traced
from .models.subjects import SQUARE, identical
from .small_pipelines import PROMPTS, build, plainly

# A loop that tells the code sums is not told that it does not.
pytestmark = pytest.mark.filterwarnings("error:toprovar. policy=.skipvar. was told:RuntimeWarning")

TALL = Schedule(((1, 1), (2, 1), (4, 2), (6, 3), (8, 4), (10, 5)))


def always(skip: int, uncond: int = 0) -> dict[str, object]:
    """Classifiers that give one answer whatever the features."""
    rest = {"coefficients": [[0.0, 0.0]], "intercepts": [0.0], "mean": [0.0, 0.0], "std": [1.0, 1.0]}
    return {"skip": {"classes": [skip], **rest}, "uncond": {"classes": [uncond], **rest}}


@pytest.fixture
def classifier(tmp_path) -> Callable[[dict[str, object]], str]:
    def write(content: dict[str, object]) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


def compiled(pipe, **options):
    own = {"policy": "skipvar", "lowering": "eager", **options}
    pipe.transformer = torch.compile(pipe.transformer, backend=toprovar, options=own)
    return pipe


@pytest.mark.parametrize("size", [(16, 16), (24, 12), (9, 14)])
def test_features_equal_scipys(size):
    before, after = torch.rand(2, 3, 3, *size).mul(2).sub(1)

    def gradients(image: Tensor) -> np.ndarray:
        grey = image.numpy().astype(np.float64).mean(0)
        sides = (ndimage.sobel(grey, axis, mode="constant") for axis in (0, 1))
        return np.sqrt(sum(side**2 for side in sides))

    changes = [np.abs(gradients(a) - gradients(b)).mean() for a, b in zip(after, before, strict=True)]
    assert sobel_change(before, after).tolist() == pytest.approx(changes, rel=1e-5)
    height, width = size
    for image, share in zip(after, high_frequency_share(after).tolist(), strict=True):
        spectrum = np.abs(np.fft.fftshift(np.fft.fft2(image.numpy().astype(np.float64).mean(0))))
        y, x = np.mgrid[:height, :width]
        far = np.hypot(y - height // 2, x - width // 2) > int(0.4 * min(size) / 2)
        assert share == pytest.approx(spectrum[far].sum() / spectrum.sum(), rel=1e-5)


def test_the_published_coefficients_decide_as_written_down():
    """Rounded to four digits, from the paper's repository; more detail means more care."""
    skip, uncond = (load_classifier("skipvar_ssim_84")[stage] for stage in ("skip", "uncond"))
    assert skip.mean == pytest.approx((0.11532, 0.48923), abs=5e-6)
    assert uncond.std == pytest.approx((0.062733, 0.053962), abs=5e-7)
    assert skip.decide((0.3, 0.7)) == 0
    assert skip.decide((0.01, 0.3)) == 3
    assert [uncond.decide((change, 0.57)) for change in (0.05, 0.35)] == [3, 2]


def test_the_classifier_of_the_demo_model_is_what_its_script_wrote():
    """`python -m benchmarks.skip_classifier --n 2400 --device cuda --batch 100 --risk 0.05`."""
    content = json.loads((FOLDER / "skipvar_scenes.json").read_text())
    assert (content["settings"]["model"], content["settings"]["n"]) == ("scenes", 2400)
    assert content["skip"]["fitted"]["leaves_out_too_much"] <= content["settings"]["risk"]
    skip, uncond = (load_classifier("skipvar_scenes")[stage] for stage in ("skip", "uncond"))
    # At the features' means, with less detail, and with more change of the gradients.
    assert [skip.decide(pair) for pair in (skip.mean, (0.05, 0.25), (0.3, 0.25))] == [2, 0, 2]
    assert [uncond.decide(pair) for pair in ((0.05, 0.25), (0.3, 0.25), (0.4, 0.33))] == [3, 1, 0]


@pytest.mark.parametrize("schedule", [SQUARE, TALL], ids=["square", "tall"])
@pytest.mark.parametrize("skip", [1, 2, 3])
def test_skipped_scales_are_not_run(skip, schedule, classifier, fresh_dynamo):
    dense = build(schedule)(PROMPTS[:2], seed=3)
    own = compiled(build(schedule), classifier=classifier(always(skip)))(PROMPTS[:2], seed=3)
    assert own.report.exited_at == 6 - skip
    assert identical(own.bits, dense.bits[: 6 - skip])


@pytest.mark.parametrize("uncond", [0, 1, 3])
def test_unconditional_rows_are_left_out(uncond, classifier, fresh_dynamo):
    with torch.no_grad():
        expected = plainly(build(SQUARE), PROMPTS[:2], 6 - uncond)
    pipe = compiled(build(SQUARE), classifier=classifier(always(0, uncond)))
    own = pipe(PROMPTS[:2], seed=3)
    assert identical(own.bits, expected)
    assert own.report.exited_at is None
    ledger = own.report.controller.ledger
    assert ledger.conditional_scales == set(range(6 - uncond, 6))
    whole = sum(
        run.dense.flops(run.dense_sizes) * (2 if run.scale >= 6 - uncond else 1) for run in ledger.runs
    )
    other = sum(r.flops(s) * (2 if at >= 6 - uncond else 1) for at, r, s in ledger.other)
    assert own.report.flops_dense == whole + other
    assert (own.report.flops < own.report.flops_dense) == (uncond > 0)


def test_a_batch_takes_the_most_careful_decision(classifier):
    # More change of the gradients, fewer skipped scales.
    rest = {"mean": [0.5, 0.0], "std": [0.1, 1.0], "intercepts": [0.0, 0.0]}
    careful = {"classes": [0, 3], "coefficients": [[1.0, 0.0], [-1.0, 0.0]], **rest}
    later = {"classes": [1, 2], "coefficients": [[1.0, 0.0], [-1.0, 0.0]], **rest, "mean": [0.8, 0.0]}
    options = Options(policy="skipvar", classifier=classifier({"skip": careful, "uncond": later}))
    for features, decided in {
        ((0.2, 0.0), (0.4, 0.0)): (3, 0),
        ((0.2, 0.0), (0.6, 0.0)): (0, 2),
        ((0.9, 0.0), (0.6, 0.0)): (0, 1),
    }.items():
        policy = options.deciding(options, SQUARE, 2, None)
        policy._decide(list(features))
        assert (policy.skipped, policy.conditional) == decided


def test_without_code_sums_nothing_is_left_out_and_a_warning_says_so():
    with pytest.warns(RuntimeWarning, match="was told no code sums"):
        outcome = traced("infinity")({"policy": "skipvar"})
    assert len(outcome.logits) == 6


def test_codes_go_to_the_policies_only():
    with generation(SQUARE) as run:
        run.begin_scale(0)
        run.note_codes(torch.zeros(1, 4, 8, 8), lambda codes: codes[:, :3])
        assert not run.conditional_only()


WRONG = [
    ({}, "KeyError: 'skip'"),
    ({**always(4)}, "classes (4,): expected some of 0 to 3"),
    ({**always(0), "uncond": {**always(0)["uncond"], "std": [0.0, 1.0]}}, "std: expected positive numbers"),
    ({**always(0), "skip": {**always(0)["skip"], "coefficients": [[1.0]]}}, "one row of two coefficients"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_a_file_that_holds_something_else_is_refused(content, message, classifier):
    with pytest.raises(OptionError) as caught:
        load_classifier(classifier(content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_classifier_that_is_none_is_refused():
    with pytest.raises(OptionError, match=r"nearest valid: 'skipvar_ssim_84'"):
        load_classifier("skipvar_ssim_48")


def test_a_classifier_that_nobody_reads_is_refused(classifier):
    with pytest.raises(OptionError, match=r"classifier=.*expected policy='skipvar'.*not policy='fastvar'"):
        Options(policy="fastvar", classifier=classifier(always(0)))
