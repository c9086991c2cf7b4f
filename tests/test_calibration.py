"""Calibration on small models: what is measured, what online generations decide, and what a profile does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from toprovar_fx import Calibration, Options, Profile
from toprovar_fx.calibration.identity import model_identity
from toprovar_fx.calibration.replay import Decisions
from toprovar_fx.criteria import join_cfg_rows, low_entropy_ratio
from toprovar_fx.errors import OptionError, ProfileError
from toprovar_fx.program import StepProgram

from .models.fixtures import traced
from .models.subjects import OPEN, SQUARE, WIDE, Outcome, TinyInfinity, identical, worst
from .models.traced import Traced

NAMES = ["infinity", "prenorm-fused-rope"]
FINE = {"buckets": tuple(part / 10 for part in range(1, 10)), "min_scale": 2, "beta": 0.1}
CRITERIA: dict[str, dict[str, Any]] = {
    "default": {},
    "previous layer": {"entropy_source": "previous_layer"},
    "previous scale": {"entropy_source": "previous_scale", "protected_layers_first": 0},
    "one layer ranks": {"entropy_source": "previous_scale", "ranking_depth": 0.5},
    "tokens": {"scope_of": "tokens"},
    "skipping": {"layer_skip_below": 0.45, "alpha_max": 1.0},
    "whole layers": {"prune_tokens": False, "layer_skip_below": 0.45, "alpha_max": 1.0, "beta": 0.0},
    "from the depth on": {"prune_from": "at", "depth_layers": "all"},
    "no scale axis": {"prune_scales": False, "min_scale": 3},
    "no layer axis": {"prune_layers": False, "normalise": "rank"},
    "last scales not run": {"scale_exit": "depth"},
    "per row": {"cfg_rows": "per_row", "pruned_kv": "keep"},
}


def criterion(**options: Any) -> dict[str, Any]:
    return {**OPEN, **FINE, **options}


def measured(
    name: str, options: dict[str, Any], images: int = 1, seeds: tuple[int, ...] = (1,)
) -> Calibration:
    calibration = Calibration(options)
    for seed in seeds:
        run = traced(name)({**calibration.options, "lowering": "eager"}, images=images, seed=seed).run
        calibration.add(run)
    return calibration


def online(outcome: Outcome, layers: int = 4) -> Decisions:
    ledger = outcome.controller.ledger
    kept = {(run.scale, run.layer): run.kept for run in ledger.runs}
    scope = tuple(ledger.detail.get(layer, 1.0) for layer in range(layers))
    return Decisions(outcome.controller.depth, scope, kept)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", CRITERIA)
def test_replayed_decisions_are_those_of_the_online_generation(name: str, label: str) -> None:
    options = criterion(**CRITERIA[label])
    derived = measured(name, options).decisions[0]
    found = online(traced(name)(options))
    assert derived.depth == found.depth
    assert derived.scope == pytest.approx(found.scope, abs=1e-4)
    replayed = {place: count for place, count in derived.kept.items() if place[0] > 0}
    # Behind the first pruned scale the maps of the pruned generation differ; K may move by a bucket.
    assert replayed.keys() == found.kept.keys()
    first = min((scale for (scale, _), kept in found.kept.items() if kept < SQUARE.tokens[scale]), default=9)
    for (scale, layer), count in found.kept.items():
        slack = 0 if scale <= first else 0.11 * SQUARE.tokens[scale] + 1
        assert abs(replayed[scale, layer] - count) <= slack
    if label != "last scales not run":
        assert first < 9, "something is pruned"


@pytest.mark.parametrize("name", NAMES)
def test_decisions_in_a_batch_are_those_of_single_images(name: str) -> None:
    calibration = Calibration(criterion())
    run = traced(name)({**calibration.options, "lowering": "eager"}, images=3).run
    calibration.add(run)
    maps = run.controllers[0].ledger.maps
    assert calibration.images == 3
    for image in range(3):
        own = {place: nats[image::3] for place, nats in maps.items()}
        rho = low_entropy_ratio(join_cfg_rows(own[4, 3], 1, "shared"))
        assert calibration.statistics[image].low_entropy_ratio[4, 3] == pytest.approx(float(rho))
        assert calibration.statistics[image].entropy_nats[4, 3] == pytest.approx(float(own[4, 3].mean()))
    assert calibration.profile().observed.images == 3


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("profile")
    made = measured("infinity", criterion(), seeds=(1, 2, 3)).profile()
    return str(made.save(folder / "profile.json"))


def test_the_profile_holds_what_was_decided(profile: str) -> None:
    found = Profile.load(profile)
    calibration = measured("infinity", criterion(), seeds=(1, 2, 3))
    joined = calibration.joined()
    assert found == Profile.from_json(calibration.profile().to_json())
    assert found.depth == joined.depth
    assert set(found.kept) == set(range(joined.depth + 1, 6))
    for scale, counts in found.kept.items():
        for layer, count in enumerate(counts):
            votes = [each.kept[scale, layer] for each in calibration.decisions]
            assert votes.count(count) == max(map(votes.count, votes))


def test_a_profile_decides_without_measuring_anything_but_the_ranking(profile: str) -> None:
    found = Profile.load(profile)
    outcome = traced("infinity")({"profile": profile})
    assert outcome.controller.depth == found.depth
    for scale in range(1, 6):
        expected = list(found.kept.get(scale, (SQUARE.tokens[scale],) * 4))
        assert outcome.counts(scale) == [max(2, count) if count else 0 for count in expected]
    ledger = outcome.controller.ledger
    assert not ledger.rho
    assert not ledger.sigma_ratios
    # A layer that may be pruned ranks itself at the next scale; nothing else is tapped.
    ranked = [
        (scale - 1, layer)
        for scale, row in found.kept.items()
        for layer, count in enumerate(row)
        if count < SQUARE.tokens[scale]
    ]
    assert sorted(ledger.maps) == ranked


def test_equal_decisions_give_equal_results(profile: str) -> None:
    """With the counts of the profile, online decisions draw the same, bit for bit."""
    found = Profile.load(profile)
    keep = {s: {layer: k / SQUARE.tokens[s] for layer, k in enumerate(row)} for s, row in found.kept.items()}
    explicit = traced("infinity")(criterion(keep=keep))
    assert identical(traced("infinity")({"profile": profile}).logits, explicit.logits)


READING = {f"aten.{name}.default" for name in ("item", "_local_scalar_dense", "is_nonzero", "nonzero")}


class Reads(TorchDispatchMode):
    """Counts values that the host reads off tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func) in READING
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """Watches what happens inside the compiled step, where the decisions are made."""
    mode, call = Reads(), StepProgram.__call__

    def watched(self: StepProgram, *arguments: Any) -> Any:
        with mode:
            return call(self, *arguments)

    to_list = torch.Tensor.tolist

    def counted(self: torch.Tensor) -> Any:
        # It reads memory without a dispatched operator.
        mode.count += torch._C._len_torch_dispatch_stack() > 0
        return to_list(self)

    monkeypatch.setattr(StepProgram, "__call__", watched)
    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    yield mode


def test_nothing_is_read_back_with_a_profile(profile: str, reads: Reads) -> None:
    settings = {"verify": "never"}
    traced("infinity")({"profile": profile, **settings})
    reads.count = 0
    traced("infinity")({"profile": profile, **settings})
    assert reads.count == 0
    traced("infinity")(criterion(**settings))
    assert reads.count > 0, "the online criterion reads its counts: the watch works"


def test_a_profile_of_another_model_or_schedule_is_refused(profile: str) -> None:
    with pytest.raises(ProfileError, match=r"but this model is"):
        traced("prenorm-fused-rope")({"profile": profile})
    with pytest.raises(ProfileError, match=r"but this generation's is 1x1 2x3 3x4"):
        traced("infinity")({"profile": profile}, schedule=WIDE)


def test_a_file_that_changed_after_compilation_is_refused(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(Path(profile).read_text())
    options = {"profile": str(path)}
    traced("infinity")(options)
    # A record that was made before the file changes stands for what Dynamo finds by the options' text.
    record = Options.parse({"lowering": "eager", **options})
    path.write_text(Path(profile).read_text() + " ")
    assert record.calibrated is not None
    with pytest.raises(ProfileError, match=r"has changed since the model was compiled"):
        record.calibrated.refuse_stale()
    path.unlink()
    record.calibrated.refuse_stale()


def test_weights_that_changed_in_place_are_other_weights(profile: str) -> None:
    weight = traced("infinity").subject.model.head.weight
    traced("infinity")({"profile": profile})
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.01)
        with pytest.raises(ProfileError, match=r"but this model is"):
            traced("infinity")({"profile": profile})
    finally:
        with torch.no_grad():
            weight.copy_(before)
    traced("infinity")({"profile": profile})


def test_the_identity_is_of_the_values_and_not_of_order_or_precision() -> None:
    parameters = [torch.randn(3, 5), torch.randn(700), torch.randn(()), torch.empty(0)]
    identity = model_identity(parameters, 4)
    assert model_identity(parameters[::-1], 4) == identity
    assert model_identity([parameter.bfloat16() for parameter in parameters], 4) == identity
    assert model_identity(parameters, 5) != identity
    assert model_identity([parameters[0].flatten(), *parameters[1:]], 4) != identity
    assert model_identity([parameters[0] * 1.01, *parameters[1:]], 4) != identity
    assert model_identity([], 4) != model_identity([], 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "balanced"}, "keep: the ratios are given, .* nearest valid: preset='criterion'"),
        ({"preset": "criterion", "budget": "2x"}, "budget='2x': .* nearest valid: budget=None"),
        (
            {"preset": "criterion", "score": "frequency"},
            "score='frequency': .* nearest valid: score='entropy'",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Calibration(options)


def test_generations_that_measured_nothing_are_refused() -> None:
    calibration = Calibration(criterion())
    with pytest.raises(ProfileError, match=r"no generation was added"):
        calibration.profile()
    pruned = traced("infinity")({**OPEN, "depth": "fixed", "depth_scale": 3})
    with pytest.raises(ProfileError, match=r"layers told no entropies, the first at scale 1"):
        calibration.add(pruned.run)
    with pytest.raises(ProfileError, match=r"nothing was measured"):
        calibration.add(traced("infinity")({"preset": "lossless"}).run)
    with pytest.raises(ProfileError, match=r"nothing was measured"):
        calibration.add(None)


def test_all_generations_are_of_one_model_and_schedule() -> None:
    calibration = measured("infinity", criterion())
    options = {**calibration.options, "lowering": "eager"}
    with pytest.raises(ProfileError, match=r"expected the schedule of the first one"):
        calibration.add(traced("infinity")(options, schedule=WIDE).run)
    with pytest.raises(ProfileError, match=r"expected the first one's"):
        calibration.add(traced("prenorm-fused-rope")(options).run)


def test_measuring_options_prune_nothing() -> None:
    outcome = traced("infinity")({**Calibration(criterion()).options, "lowering": "eager"})
    assert {arm for scale in range(1, 6) for arm in outcome.arms(scale)} == {"tapped"}
    dense = traced("infinity")({"preset": "lossless"})
    assert worst(outcome.logits, dense.logits) < 1e-5
    assert Options.parse(Calibration().options).keep is None


@pytest.mark.gpu
def test_on_cuda_the_host_does_not_wait_for_the_device_with_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Traced(TinyInfinity(device="cuda"))
    model({"preset": "lossless"})
    calibration = Calibration(criterion())
    calibration.add(model(calibration.options | {"lowering": "eager"}).run)
    settings = {"profile": str(calibration.profile().save(tmp_path / "profile.json")), "verify": "never"}
    expected = model(settings)
    call = StepProgram.__call__

    def watched(self: StepProgram, *arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return call(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(StepProgram, "__call__", watched)
    assert identical(model(settings).logits, expected.logits)
