"""Preset files: what `toprovar tune` writes is what `preset` reads, and nothing else is."""

from __future__ import annotations

import json

import pytest

from toprovar_fx.cli.variants import parse_variant
from toprovar_fx.errors import OptionError, OutputError
from toprovar_fx.options import Options
from toprovar_fx.preset_files import read_preset, write_preset

OPTIONS = {"preset": "criterion", "keep": {-1: 0.1, -2: {3: 0.5, 4: 0.0}}, "score": "frequency"}


def test_a_file_stands_for_its_options(tmp_path):
    path = str(tmp_path / "mine.json")
    write_preset(path, OPTIONS, {"target": 3.0})
    assert Options.parse({"preset": path}) == Options.parse(OPTIONS)
    assert Options.parse({"preset": path, "score": "random"}) == Options.parse({**OPTIONS, "score": "random"})
    assert Options.parse(Options.parse({"preset": path}).as_dict()) == Options.parse(OPTIONS)
    assert Options.parse(parse_variant(f"{path}:restore=residual").options).restore == "residual"
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "expected a preset file in JSON"),
        ("[" * 100_000, "expected a preset file in JSON"),
        ("[]", 'expected "format": "toprovar-preset"'),
        (json.dumps({"format": "toprovar-preset", "version": 2, "options": {}}), "expected version 1, not 2"),
        (json.dumps({"format": "toprovar-preset", "version": 1}), 'expected "options"'),
        (
            json.dumps({"format": "toprovar-preset", "version": 1, "options": {"preset": "again.json"}}),
            'expected "options"',
        ),
        (
            json.dumps({"format": "toprovar-preset", "version": 1, "options": {"scor": "random"}}),
            "nearest valid: score",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, content, expected):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=expected):
        Options.parse({"preset": str(path)})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(OptionError, match="cannot be read"):
        read_preset(tmp_path / "none.json")


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_preset(tmp_path / "missing" / "mine.json", OPTIONS, {})
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_preset(tmp_path / "folder.json", OPTIONS, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.json"]
