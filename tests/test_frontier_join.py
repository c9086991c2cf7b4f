"""Tables of several runs as one: what must agree, and what the joined table holds."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from toprovar_fx.__main__ import main
from toprovar_fx.evaluation.frontier_join import join_tables, short_rows

from .frontier_tables import made, row


def stored(folder: Path, table: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "table.json").write_text(json.dumps(table))
    return str(folder)


def test_disjoint_rows_stand_in_one_table(tmp_path, capsys):
    one = made({"fast": row("fast", 0.3)}, left_out={"fast at 4x": "too much"})
    other = made({"random": row("random", 0.5, runs=2)}, device="NVIDIA H200", presets="random")
    other["dense"] = {**other["dense"], "overall": 0.712}
    given = [stored(tmp_path / "a", one), stored(tmp_path / "b", other)]
    # A folder and its JSON file are the same.
    given[1] += "/table.json"
    out = tmp_path / "new" / "joined"
    assert main(["report", str(out), *given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = json.loads((out / "table.json").read_text())
    assert told["table"] == result and told["out"] == str(out)
    assert told["files"] == ["report.html", "table.html", "table.json", "table.md", "table.png"]
    assert list(result["rows"]) == ["fast", "random"] and result["rows"]["random"]["change"] == -0.01
    assert result["left_out"] == {"fast at 4x": "too much"}
    assert result["device"] == "NVIDIA H100; NVIDIA H200" and result["torch"] == "2.13.0"
    # Only one of the tables says this.
    assert "presets" not in result
    assert result["dense"]["overall"] == 0.71 and result["dense_apart"] == pytest.approx(0.002)
    assert short_rows(result) == {"random": "2 of 3 runs"}
    assert "random: 2 of 3 runs" in (out / "table.html").read_text()
    # What was joined can be joined again.
    third = stored(tmp_path / "c", made({"fastvar": row("fastvar", 0.4)}))
    assert main(["report", str(tmp_path / "all"), str(out), third]) == 0
    assert len(json.loads((tmp_path / "all" / "table.json").read_text())["rows"]) == 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"n": 600}, "has n=600 and 'a' n=1200"),
        ({"runs": 2}, "has runs=2"),
        ({"model": "other.safetensors"}, "has model=other.safetensors"),
        ({"rows": {"fast": row("fast", 0.3)}}, "the row 'fast' is in 'a' and in 'b'"),
        ({"dense": {**made({})["dense"], "overall": 0.6}}, "dense scores 0.7100 in 'a' and 0.6000 in 'b'"),
    ],
)
def test_what_does_not_fit_is_refused(change, expected):
    from toprovar_fx.errors import OptionError

    other = {**made({"random": row("random", 0.5)}), **copy.deepcopy(change)}
    with pytest.raises(OptionError) as error:
        join_tables({"a": made({"fast": row("fast", 0.3)}), "b": other})
    assert expected in str(error.value)
