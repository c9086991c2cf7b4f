"""The profile file: what is written is read, and nothing else is."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprovar_fx import Profile, ToProVARError
from toprovar_fx.errors import ProfileError

from .profiles import made


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    profile = made()
    path = profile.save(tmp_path / "new" / "profile.json")
    assert Profile.load(path) == profile
    assert json.loads(path.read_text()) == profile.to_json()
    assert [entry.name for entry in path.parent.iterdir()] == ["profile.json"]


def test_a_profile_that_prunes_nothing(tmp_path: Path) -> None:
    profile = made(depth=None, kept={})
    assert Profile.load(profile.save(tmp_path / "profile.json")) == profile


@given(st.integers(0, len(made().text()) - 3))
def test_a_truncated_file_is_a_clear_error(length: int) -> None:
    with pytest.raises(ProfileError, match=r"truncated or no JSON|no profile"):
        try:
            document = json.loads(made().text()[:length])
        except ValueError as error:
            raise ProfileError(f"truncated or no JSON ({error})") from None
        Profile.from_json(document)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "7", '{"format": "coco"}', made().text()[:500]])
def test_a_foreign_file_is_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(
        ProfileError, match=r"profile='.*profile.json': (truncated or no JSON|no profile)"
    ) as caught:
        Profile.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("nothing.json", "binary", "."):
        with pytest.raises(
            ProfileError, match=r"cannot be read.*expected a file that toprovar calibrate wrote"
        ):
            Profile.load(tmp_path / name)


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(ProfileError, match="profile=None: expected the path of a file"):
        Profile.load(None)  # type: ignore[arg-type]


def test_another_version_names_both() -> None:
    document = made().to_json() | {"version": 2}
    with pytest.raises(ProfileError, match=r"version 2, expected version 1"):
        Profile.from_json(document)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("model.sha256", None, "model.sha256='None', expected text"),
        ("model.layers", "3", "model.layers='3', expected an integer"),
        ("model.layers", 4, "layer_scope has 3 values, expected 4"),
        ("schedule", [[2, 2]], "expected at least one scale, the first being"),
        ("schedule", [[1, 1, 1]], "schedule\\[0\\] has 3 values, expected 2"),
        ("decisions.depth", 6, "decisions.depth=6, expected 0 to 5"),
        ("decisions.depth", True, "decisions.depth='True', expected an integer or null"),
        (
            "decisions.layer_scope",
            [0.5, 2, 1],
            "decisions.layer_scope\\[1\\]=2, expected a number from 0 to 1",
        ),
        ("decisions.kept_tokens", {"6": [1, 1, 1]}, "kept_tokens.6, expected a scale from 0 to 5"),
        ("decisions.kept_tokens", {"4": [1, 37, 1]}, "expected counts from 0 to 36"),
        ("observed.low_entropy_ratio", [], "observed.low_entropy_ratio has 0 values, expected 2"),
        ("observed.attention_entropy_nats", 3, "observed.attention_entropy_nats='3', expected a list"),
        ("settings", 3, "settings='3', expected an object"),
    ],
)
def test_a_wrong_entry_is_named(entry: str, value: object, message: str) -> None:
    document = made().to_json()
    *outer, last = entry.split(".")
    place: Any = document
    for part in outer:
        place = place[part]
    place[last] = value
    with pytest.raises(ProfileError, match=message):
        Profile.from_json(document)


@given(st.data())
def test_any_change_is_a_profile_or_a_clear_error(data: st.DataObject) -> None:
    """Whatever stands at any entry: never a crash of another kind."""
    document = copy.deepcopy(made().to_json())
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        place = inner
    junk = st.one_of(st.none(), st.booleans(), st.integers(-3, 99), st.floats(), st.text(max_size=3))
    place[key] = data.draw(st.one_of(junk, st.lists(junk, max_size=3)))
    try:
        Profile.from_json(document)
    except ToProVARError as error:
        assert "\n" not in str(error)


def test_a_missing_entry_is_named() -> None:
    document = made().to_json()
    del document["decisions"]["depth"]
    with pytest.raises(ProfileError, match=r"the entry decisions.depth is missing"):
        Profile.from_json(document)


def test_a_profile_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match=r"cannot write profile"):
        made().save(tmp_path / "file" / "profile.json")
