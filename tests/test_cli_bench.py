from __future__ import annotations

import json

import pytest

from toprovar_fx.__main__ import main
from toprovar_fx.cli import bench as module
from toprovar_fx.cli.variants import Variant

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


def test_without_baselines_there_are_no_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--variants", "fast", "--repeats", "1", "--device", "cpu", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = json.loads(lines[-1])["variants"]
    assert row["speedup_vs_inductor"] is None
    assert any("masked attention" in line for line in lines)
