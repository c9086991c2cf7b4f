"""The option `profile`: what it sets, what may be changed beside it, and what contradicts it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from toprovar_fx import Calibration, Options, Schedule
from toprovar_fx.errors import OptionError, ProfileError
from toprovar_fx.presets import PRESETS

from .profiles import SCHEDULE, made


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(made({"beta": 0.01, "restore": "residual"}).save(tmp_path / "profile.json"))


def test_it_stands_for_fixed_decisions(path: str) -> None:
    options = Options.parse({"profile": path})
    assert (options.depth, options.depth_scale) == ("fixed", 3)
    assert (options.layer_scope, options.scope_values) == ("fixed", (0.5, 0.25, 1.0))
    assert options.keep_ratio(4, 1, 6, 3) == 0.5
    assert options.keep_ratio(5, 1, 6, 3) == 0
    assert options.keep_ratio(3, 1, 6, 3) is None
    assert options.beta == 0.01
    assert options.restore == "residual"
    assert options.preset == "criterion"


def test_a_profile_without_depth_prunes_nothing(tmp_path: Path) -> None:
    profile = made({"scale_exit": "depth"}, depth=None, kept={})
    options = Options.parse({"profile": str(profile.save(tmp_path / "profile.json"))})
    assert (options.depth, options.keep, options.scale_exit) == ("off", None, None)


def test_records_round_trip(path: str) -> None:
    options = Options.parse({"profile": path, "seed": 3})
    assert Options.parse(options.as_dict()) == options
    assert Options.parse(json.loads(json.dumps(options.as_dict()))) == options
    assert pickle.loads(pickle.dumps(options)) == options
    assert hash(options) == hash(Options.parse(options.as_dict()))
    assert options != Options.parse({"profile": path})


def test_two_profiles_of_equal_decisions_and_other_models_are_not_equal(tmp_path: Path, path: str) -> None:
    other = made({"beta": 0.01, "restore": "residual"}, model="cd" * 32).save(tmp_path / "other.json")
    assert Options.parse({"profile": str(other)}) != Options.parse({"profile": path})


@pytest.mark.parametrize(
    "free",
    [
        {"restore": "cache"},
        {"sampling": "bernoulli"},
        {"pruned_kv": "keep"},
        {"lowering": "eager", "strict": True, "verify": "always"},
        {"scale_exit": -1},
        {"beta": 0.01, "buckets": [0.1, 0.25, 0.5, 0.75], "depth": "fixed"},
        {"preset": "criterion"},
    ],
)
def test_what_does_not_contradict_it_may_be_given(path: str, free: dict[str, object]) -> None:
    options = Options.parse({"profile": path, **free})
    assert options.depth_scale == 3
    assert all(
        options.as_dict()[name] == value for name, value in free.items() if not isinstance(value, list)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tau": 0.5}, r"tau=0.5: the profile '.*profile.json' holds for tau=0.4 alone; nearest valid: 0.4"),
        ({"beta": 0.02}, "beta=0.02: .* holds for beta=0.01 alone"),
        ({"depth": "online"}, "depth='online': .* holds for depth='fixed' alone"),
        ({"depth": "fixed", "depth_scale": 4}, "depth_scale=4: .* depth_scale=3 alone"),
        ({"keep": {-1: 0.5}}, "keep="),
        ({"budget": "2x"}, "budget=2.0: .* budget=None alone"),
        ({"scope_values": [1.0]}, "scope_values="),
        ({"entropy_source": "previous_layer"}, "entropy_source='previous_layer'"),
        ({"preset": "fast"}, "keep=.*holds for|protected_layers_first=0"),
        ({"preset": "literal"}, "holds for"),
        ({"policy": "random"}, "policy='random': .* holds for policy='toprovar' alone"),
        ({"preset": "lossless"}, "prune_scales=False: .* prune_scales=True alone"),
    ],
)
def test_what_contradicts_it_is_refused_with_both_values(
    path: str, given: dict[str, object], message: str
) -> None:
    with pytest.raises(ProfileError, match=message) as caught:
        Options.parse({"profile": path, **given})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", ["fastvar", "skipvar", "sparsevar"])
def test_other_policies_and_profiles_exclude_each_other(path: str, policy: str, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=f"policy='{policy}': expected 'toprovar' or 'random' with a profile"
    ):
        Options.parse({"profile": path, "policy": policy})
    told = made(settings={**made().settings, "policy": policy}).save(tmp_path / "told.json")
    with pytest.raises(
        OptionError, match=f"policy='{policy}': expected 'toprovar' or 'random' with a profile"
    ):
        Options.parse({"profile": str(told)})
    with pytest.raises(OptionError, match=f"policy='{policy}': does not decide by entropies alone"):
        Calibration({"policy": policy})


def test_cache_policies_and_profiles_exclude_each_other(path: str) -> None:
    with pytest.raises(OptionError, match="cache_policy='hack': expected none with a profile"):
        Options.parse({"profile": path, "cache_policy": "hack"})
    with pytest.raises(OptionError, match="cache_policy='hack': changes what entropies are measured over"):
        Calibration({"cache_policy": "hack"})
    with pytest.raises(OptionError, match="guidance_until=-1: changes what entropies are measured over"):
        Calibration({"guidance_until": -1})


@pytest.mark.parametrize("value", [3, "", ["a"], "no-such-file.json"])
def test_a_profile_is_a_readable_file(value: object) -> None:
    with pytest.raises(OptionError, match=r"profile="):
        Options.parse({"profile": value})


def test_a_setting_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    settings = dict(made().settings)
    del settings["tau"]
    lacking = made(settings=settings).save(tmp_path / "lacking.json")
    with pytest.raises(ProfileError, match=r"settings.tau is missing"):
        Options.parse({"profile": str(lacking)})
    wrong = made(settings={**made().settings, "tau": 7}).save(tmp_path / "wrong.json")
    with pytest.raises(ProfileError, match=r"settings.tau=7: expected a number from 0 to 1"):
        Options.parse({"profile": str(wrong)})


def test_another_schedule_or_model_is_refused_with_both(path: str) -> None:
    calibrated = Options.parse({"profile": path}).calibrated
    assert calibrated is not None
    calibrated.refuse_other("ab" * 32, 3, SCHEDULE)
    with pytest.raises(ProfileError, match=r"schedule 1x1 2x2 3x3 4x4 6x6 8x8, but this .* is 1x1 2x3"):
        calibrated.refuse_other("ab" * 32, 3, Schedule(((1, 1), (2, 3))))
    with pytest.raises(
        ProfileError, match=r"model abababababab of 3 layers, but this model is cdcdcdcdcdcd of 3"
    ):
        calibrated.refuse_other("cd" * 32, 3, SCHEDULE)
    with pytest.raises(ProfileError, match=r"of 3 layers, but this model is abababababab of 4 layers"):
        calibrated.refuse_other("ab" * 32, 4, SCHEDULE)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_without_a_profile_nothing_is_bound(preset: str) -> None:
    assert Options.parse({"preset": preset, "profile": None}) == Options.parse({"preset": preset})
