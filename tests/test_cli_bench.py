from __future__ import annotations

import json
from typing import Any

import pytest

from toprovar_fx.__main__ import main
from toprovar_fx.cli import bench as module
from toprovar_fx.cli.variants import Variant
from toprovar_fx.errors import OptionError

from .cli_fakes import FakePipeline


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load", lambda *_, **__: FakePipeline())
    monkeypatch.setattr(
        Variant, "pipeline", lambda self, pipe: FakePipeline(pruned=self.compiler == "toprovar")
    )


def test_json_has_a_row_per_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", "--variants", "eager,inductor,fast", "--repeats", "2", "--device", "cpu", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    eager, inductor, fast = result["variants"]
    assert [row["name"] for row in result["variants"]] == ["eager", "inductor", "fast"]
    assert eager["speedup_vs_eager"] == 1.0
    assert inductor["speedup_vs_inductor"] == 1.0
    assert fast["speedup_vs_inductor"] > 0
    assert eager["scales_speedup_vs_inductor"] == fast["scales_speedup_vs_eager"] == 1.0  # all take 20 ms
    assert fast["scales_median_ms"] == 20.0
    assert fast["fire_rates"] == {"dense": 0.75, "tapped": 0.0, "pruned": 0.25, "skipped": 0.0}
    assert fast["pruned_layers_share_by_scale"] == {"0": 0.0, "1": 0.5}
    assert fast["first_call_s"] > 0
    assert fast["peak_memory_bytes"] is None or fast["peak_memory_bytes"] > 2**20
    assert fast["kept_share"] == 128 / 160
    assert fast["parts_median_ms"] == {"text": 1.0, "scales": 20.0, "decode": 4.0}
    assert len(fast["seconds"]) == 2
    assert result["graphs_compiled_while_timing"] == 0


def test_variants_at_budgets_and_one_that_cannot_be(monkeypatch, capsys) -> None:
    class Refused(FakePipeline):
        def __call__(self, *_, **__):
            raise OptionError("budget='4x': at most 3x")

    def pipeline(variant: Variant, dense: Any) -> FakePipeline:
        return Refused() if variant.budget == 4 else FakePipeline(pruned=True)

    monkeypatch.setattr(Variant, "pipeline", pipeline)
    given = ["bench", "--repeats", "1", "--device", "cpu", "--json", "--budgets", "2x,4x", "--variants"]
    assert main([*given, "inductor,@random:preset=fast"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = ["inductor", "random:preset=fast", "random:preset=fast at 2x"]
    assert [row["name"] for row in result["variants"]] == names
    assert result["left_out"] == {"random:preset=fast at 4x": "budget='4x': at most 3x"}
    expected = {"policy": "random", "preset": "fast", "budget": "2x", "scale_exit": "None"}
    assert result["variants"][2]["options"] == expected and result["variants"][0]["options"] == {}
    # Where nothing is left, the error is the command's.
    monkeypatch.setattr(Variant, "pipeline", lambda *_: Refused())
    assert main([*given, "fast"]) == 2
    assert "fast: budget='4x'" in capsys.readouterr().err


def test_without_baselines_there_are_no_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--variants", "fast", "--repeats", "1", "--device", "cpu", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = json.loads(lines[-1])["variants"]
    assert row["speedup_vs_inductor"] is None
    assert any("masked attention" in line for line in lines)


def test_what_there_is_when_the_time_is_up_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """One variant is timed, once, whatever `--seconds` says."""
    given = ["bench", "--variants", "eager,lossless", "--repeats", "3", "--seconds", "1e-6", "--json"]
    assert main(given) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in result["variants"]] == ["eager"]
    assert result["rounds"] == 1 == len(result["variants"][0]["seconds"])
    assert "--seconds" in result["left_out"]["lossless"]
