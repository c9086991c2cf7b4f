from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toprovar_fx.errors import OptionError
from toprovar_fx.option_sizes import resolve_index
from toprovar_fx.options import Options, options_table, presets_table
from toprovar_fx.presets import DEFAULT_PRESET, PRESETS


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_valid_and_holds_its_values(preset: str) -> None:
    options = Options.parse({"preset": preset})
    assert options.preset == preset
    for name, value in PRESETS[preset].items():
        assert options.as_dict()[name] == ((*value, 1.0) if isinstance(value, tuple) else value)


def test_only_the_lossless_preset_prunes_nothing() -> None:
    assert [name for name in PRESETS if not Options.parse({"preset": name}).prunes] == ["lossless"]


@pytest.mark.parametrize("extra", [{"prune_tokens": True}, {"scale_exit": -1}, {"keep": {-1: 0.5}}])
def test_one_pruning_setting_makes_the_lossless_preset_prune(extra: dict[str, object]) -> None:
    assert Options.parse({"preset": "lossless", **extra}).prunes


def test_none_and_the_empty_mapping_give_the_default_preset() -> None:
    assert Options.parse(None) == Options.parse({}) == Options() == Options(preset=DEFAULT_PRESET)


def test_options_pass_through_unchanged() -> None:
    options = Options(tau=0.7)
    assert Options.parse(options) is options


def test_the_preset_applies_first_wherever_it_stands() -> None:
    first = Options.parse({"preset": "fast", "alpha_min": 0.25})
    last = Options.parse({"alpha_min": 0.25, "preset": "fast"})
    assert first == last == Options(preset="fast", alpha_min=0.25)
    assert first.alpha_min == 0.25
    assert first.scale_exit == PRESETS["fast"]["scale_exit"]


def test_equality_and_hash_ignore_the_name_of_the_preset() -> None:
    fast = Options(preset="fast")
    spelled = Options.parse({**fast.as_dict(), "preset": "balanced"})
    assert spelled.preset == "balanced"
    assert spelled == fast
    assert hash(spelled) == hash(fast)
    assert fast != Options(preset="fast", tau=0.41)


def test_replace_and_pickle_keep_every_value() -> None:
    options = Options.parse({"preset": "literal", "keep": {-1: {3: 0.5}}})
    assert dataclasses.replace(options, tau=0.5) == Options.parse({**options.as_dict(), "tau": 0.5})
    assert pickle.loads(pickle.dumps(options)) == options


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().tau = 0.5  # type: ignore[misc]


VALID = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.sampled_from(sorted(PRESETS)),
        "tau": st.floats(0, 1),
        "min_scale": st.integers(-10, 20),
        "scale_exit": st.one_of(st.none(), st.integers(-10, 20)),
        "buckets": st.lists(st.floats(0.01, 1), min_size=1, max_size=5, unique=True).map(sorted),
        "depth_layers": st.one_of(
            st.sampled_from(["all", "late"]), st.lists(st.integers(-5, 40), min_size=1, max_size=4)
        ),
        "keep": st.dictionaries(
            st.integers(-5, 12),
            st.one_of(
                st.floats(0, 1), st.dictionaries(st.integers(-5, 40), st.floats(0, 1), min_size=1, max_size=3)
            ),
            max_size=3,
        ),
    },
)


@given(VALID)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_round_trip_through_a_dict_and_json(values: dict[str, object]) -> None:
    options = Options.parse(values)
    assert Options.parse(options.as_dict()) == options
    assert Options.parse(json.loads(json.dumps(options.as_dict()))) == options
    assert hash(options) == hash(Options.parse(options.as_dict()))


def test_values_are_normalised() -> None:
    options = Options.parse({"alpha_max": 1, "buckets": [0.5], "keep": {}, "depth_layers": [1, -1]})
    assert isinstance(options.alpha_max, float)
    assert options.buckets == (0.5, 1.0)
    assert options.keep is None
    assert options.depth_layers == (1, -1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tua": 1}, "unknown option 'tua': expected the name of an option; nearest valid: tau"),
        ({"tau": 2}, "tau=2: expected a number from 0 to 1; nearest valid: 1"),
        ({"tau": "0.3"}, "tau='0.3': expected a number from 0 to 1; nearest valid: 0.3"),
        ({"tau": float("nan")}, "tau=nan: expected a number from 0 to 1"),
        ({"tau": True}, "tau=True: expected a number from 0 to 1; nearest valid: 1.0"),
        ({"beta": float("inf")}, "beta=inf: expected a number of at least 0"),
        ({"depth": "onlin"}, "one of 'online', 'fixed', 'off'; nearest valid: 'online'"),
        (
            {"preset": "fsat"},
            "preset='fsat': expected one of 'lossless', 'criterion', 'balanced', 'fast', 'literal'; ",
        ),
        ({"preset": None}, "preset=None: expected one of"),
        ({"strict": 0}, "strict=0: expected True or False; nearest valid: False"),
        ({"strict": []}, "strict=[]: expected True or False"),
        ({"seed": -1}, "seed=-1: expected an integer of at least 0 and at most 9223372036854775807; nearest"),
        ({"seed": 2**63}, "and at most 9223372036854775807; nearest valid: 9223372036854775807"),
        ({"min_scale": 2.6}, "min_scale=2.6: expected an integer; nearest valid: 3"),
        ({"scale_exit": "dept"}, "an integer or 'depth' or None; nearest valid: 'depth'"),
        ({"depth_layers": "last"}, "depth_layers='last': expected 'all' or 'late' or a sequence"),
        ({"depth_layers": []}, "depth_layers=[]: expected"),
        ({"depth_layers": [1.5]}, "depth_layers=1.5: expected an integer"),
        ({"buckets": [0.5, 0.2]}, "nearest valid: (0.2, 0.5)"),
        ({"buckets": [0, 0.5]}, "nearest valid: (0.5,)"),
        ({"buckets": [0.5, 3]}, "buckets=3: expected a number from 0 to 1; nearest valid: 1"),
        ({"buckets": "0.5"}, "buckets='0.5': expected a non-empty sequence"),
        ({"keep": {"x": 0.5}}, "not 'x'"),
        ({"keep": {"1.5": 0.5}}, "not '1.5'; nearest valid: 2"),
        ({"keep": {1: 1.5}}, "keep[1]=1.5: expected a number from 0 to 1; nearest valid: 1"),
        ({"keep": {1: {2: -1}}}, "keep[1][2]=-1: expected a number from 0 to 1; nearest valid: 0"),
        ({"keep": {1: {}}}, "keep[1]={}: expected at least one"),
        ({"keep": {1: 0.5, "1": 0.4}}, "every index once, not 1 twice"),
        ({"keep": 0.5}, "keep=0.5: expected {scale: ratio}"),
        ({"dump_dir": ""}, "dump_dir='': expected a non-empty string or None"),
        ({"alpha_min": 0.9}, "alpha_min=0.9: expected at most alpha_max=0.8; nearest valid: 0.8"),
        ({"depth": "fixed"}, "expected depth_scale to be set"),
        ({"depth_scale": 3}, "depth_scale=3: expected depth='fixed', not depth='online'"),
        ({"scope_values": [1.0]}, "expected layer_scope='fixed'"),
        (
            {"scale_exit": "depth", "depth": "off"},
            "expected depth='online' or depth='fixed', not depth='off'",
        ),
    ],
)
def test_a_bad_value_is_rejected_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options.parse(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_like_no_other_lists_the_options() -> None:
    with pytest.raises(OptionError, match="expected one of preset, prune_scales"):
        Options.parse({"qqqqqq": 1})


def test_options_must_be_a_mapping() -> None:
    with pytest.raises(OptionError, match="options=5: expected a mapping"):
        Options.parse(5)  # type: ignore[arg-type]


@given(st.sampled_from([field.name for field in dataclasses.fields(Options) if field.init]), st.data())
@settings(derandomize=True, max_examples=150, deadline=None)
def test_any_junk_is_accepted_or_an_option_error(name: str, data: st.DataObject) -> None:
    scalars = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=2)
    )
    junk = data.draw(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=4))
    try:
        options = Options.parse({name: junk})
    except OptionError as error:
        assert name.split("[")[0] in str(error)
    else:
        hash(options)


def test_keep_ratio_counts_from_both_ends() -> None:
    options = Options.parse({"keep": {-1: 0.2, 3: {0: 0.5, -1: 0.75}}})
    ratio = {
        (s, layer): options.keep_ratio(s, layer, scales=10, layers=14)
        for s in range(10)
        for layer in range(14)
    }
    assert ratio[9, 4] == 0.2
    assert ratio[3, 0] == 0.5
    assert ratio[3, 13] == 0.75
    assert ratio[3, 5] is None
    assert ratio[8, 0] is None
    assert Options(preset="criterion").keep_ratio(9, 0, scales=10, layers=14) is None


def test_keep_ratio_prefers_the_index_from_the_start() -> None:
    assert Options.parse({"keep": {-1: 0.2, 9: 0.4}}).keep_ratio(9, 0, scales=10, layers=14) == 0.4


def test_resolve_index() -> None:
    assert [resolve_index("min_scale", index, 10) for index in (0, 9, -1, -10)] == [0, 9, 9, 0]
    with pytest.raises(OptionError, match="min_scale=10: expected an index from -10 to 9; nearest valid: 9"):
        resolve_index("min_scale", 10, 10)


def test_tables_list_everything() -> None:
    lines = options_table().splitlines()
    names = [field.name for field in dataclasses.fields(Options) if field.init]
    assert [line.split("`")[1] for line in lines[2:]] == names
    assert all(line.count(" | ") == 3 for line in lines[2:])
    assert [line.split("`")[1] for line in presets_table().splitlines()[2:]] == list(PRESETS)


def test_every_option_has_help() -> None:
    for field in (f for f in dataclasses.fields(Options) if f.init):
        assert field.metadata["help"].endswith(".")
        assert field.metadata["values"]
