"""Dumps, readable graphs, artifacts for tlparse and TORCH_LOGS."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from toprovar_fx.analysis.reasons import Unsupported
from toprovar_fx.errors import OutputError
from toprovar_fx.lowering.readable import readable
from toprovar_fx.options import Options
from toprovar_fx.passes.context import PassContext
from toprovar_fx.passes.outline_blocks import outline_blocks
from toprovar_fx.passes.pipeline import rewrite_step
from toprovar_fx.passes.row_plan import GatherAt, RowPlan
from toprovar_fx.passes.rows import rewrite_rows
from toprovar_fx.runtime.verify import PermutationCheck

from .models.fixtures import NAMES, traced
from .models.subjects import OPEN

ROOT = Path(__file__).resolve().parent.parent
NAME = "prenorm-fused-rope"


def rewrite(folder: Path, graph: int = 1) -> list[str]:
    """Rewrite a trace with dumps; the names of the passes."""
    options = Options(**OPEN, keep={-1: 0.5}, dump_dir=str(folder))
    context = PassContext("eager", PermutationCheck("never"))
    return [record.name for record in rewrite_step(traced(NAME).graphs[graph], options, context)[1]]


def test_every_pass_is_dumped_before_and_after(tmp_path):
    names = rewrite(tmp_path / "dumps")
    folder = tmp_path / "dumps" / "graph_000"
    expected = {"0000_dynamo.txt"}
    for at, name in enumerate(names, 1):
        expected |= {f"{at:04}_before_{name}.txt", f"{at:04}_after_{name}.txt"}
    assert {path.name for path in folder.iterdir()} == expected
    for at in range(2, len(names) + 1):
        before = folder / f"{at:04}_before_{names[at - 1]}.txt"
        after = folder / f"{at - 1:04}_after_{names[at - 2]}.txt"
        assert before.read_text() == after.read_text()
    gathered = (folder / "0005_after_token_gather.txt").read_text()
    assert "layer 1: ScaleDepthGate(early=EntropyTap(whole=DenseBlock(dense=#3), tapped=#4)" in gathered
    assert "gather: f32[2, K, 32] = torch.gather(hidden, 1, expand)" in gathered
    assert gathered.count("# Graph #5, block: K tokens") == 1, "layers share the graph"
    unchanged = folder / "0006_after_layer_skip.txt"
    assert unchanged.read_text() == (folder / "0006_before_layer_skip.txt").read_text()


def test_every_graph_gets_a_folder_of_its_own(tmp_path):
    rewrite(tmp_path)
    with pytest.raises(Unsupported):
        rewrite(tmp_path, graph=0)
    assert {path.name for path in tmp_path.iterdir()} == {"graph_000", "graph_001"}
    assert (tmp_path / "graph_001" / "0001_unsupported.txt").read_text().startswith("ONE_TOKEN")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"dump_dir: cannot write '.*file.*expected a folder"):
        rewrite(tmp_path / "file" / "dumps")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", list(GatherAt), ids=lambda where: where.name)
def test_shapes_of_a_rewritten_graph_are_worked_out_anew(name, where):
    """Dynamo's values at the copied nodes still have all L rows; the text must not show them."""
    block = outline_blocks(traced(name).dynamic).sites[0].block
    text = readable(rewrite_rows(block, RowPlan(where)).graph, rewritten=True)
    assert "shapes unknown" not in text
    wide = {"infinity": 256}.get(name, 64)  # the feed-forward's inner width: behind every gather
    rows = {match[1] for match in re.finditer(rf"f32\[2, (\w+), {wide}\]", text)}
    assert rows == {"K"}


def test_a_readable_graph_has_one_statement_a_line_and_its_source():
    text = readable(traced(NAME).dynamic)
    assert "    l_hidden_: f32[2, s81, 32],\n" in text.replace(length_of(text), "s81")
    assert "    # prenorm.py:96, start = end - hidden.shape[1]\n" in text
    assert not re.search(r"slice\(|= None|;  |L_hidden_", text)
    statements = [line for line in text.splitlines() if " = " in line and not line.strip().startswith("#")]
    calls = [n for n in traced(NAME).dynamic.graph.nodes if n.op not in ("placeholder", "output")]
    assert len(statements) == len(calls)


def length_of(text: str) -> str:
    return re.search(r"l_hidden_: f32\[2, (\w+), 32\]", text)[1]


# The second is what an assertion in somebody's fake implementation raises.
@pytest.mark.parametrize(
    ("error", "note"),
    [
        (RuntimeError("no fake implementation"), "RuntimeError: no fake implementation"),
        (AssertionError(), "AssertionError: "),
    ],
    ids=["with words", "without"],
)
def test_shapes_that_cannot_be_worked_out_are_left_out(monkeypatch, error, note):
    from toprovar_fx.lowering import readable as module

    def fail(*_):
        raise error

    monkeypatch.setattr(module, "symbolic_values", fail)
    block = outline_blocks(traced(NAME).dynamic).sites[0].block
    text = readable(rewrite_rows(block, RowPlan(GatherAt.BLOCK_INPUT)).graph, rewritten=True)
    assert text.startswith(f"# shapes unknown: {note}\n")
    assert "f32[" not in text


SCRIPT = """
import torch, toprovar_fx
from tests.models.subjects import OPEN, SQUARE, TinyPreNorm, generate
subject = TinyPreNorm(True, True, depth=2)
options = {**OPEN, "lowering": "eager", "keep": {5: 0.5}}
generate(subject, torch.compile(subject.model, backend="toprovar", options=options))
"""


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Standard error and trace of a process of its own: torch reads both settings when it is imported."""
    folder = tmp_path_factory.mktemp("trace")
    settings = {"TORCH_LOGS": "+toprovar_fx", "TORCH_TRACE": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr, "".join(path.read_text() for path in folder.iterdir())


def test_torch_logs_takes_the_package(logged):
    lines = logged[0].splitlines()
    found = [re.search(r"\[0/1\] pass (\w+): layers (\[.*?\]) in", line) for line in lines]
    passes = {match[1]: match[2] for match in found if match}
    assert passes["outline_blocks"] == "[0, 1]"
    assert passes["token_gather"] == "[1]"
    assert passes["layer_skip"] == "[]"


def test_artifacts_reach_the_structured_trace(logged):
    found = re.findall(r"\] (\{\"artifact\".*\})$", logged[1], re.MULTILINE)
    records = [json.loads(record) for record in found]
    names = [record["artifact"]["name"] for record in records]
    ours = [name for name in names if name.startswith("toprovar_")]
    assert ours == [
        "toprovar_0000_dynamo",
        "toprovar_0001_unsupported",
        "toprovar_0000_dynamo",
        "toprovar_0001_after_outline_blocks",
        "toprovar_0002_after_cache_offset",
        "toprovar_0003_after_attention_entropy",
        "toprovar_0004_after_scale_depth_gate",
        "toprovar_0005_after_token_gather",
        "toprovar_passes",
    ]
    passes = next(record for record in records if record["artifact"]["name"] == "toprovar_passes")
    assert passes["artifact"]["encoding"] == "json"
    assert (passes["frame_id"], passes["frame_compile_id"]) == (0, 1)
    assert "torch.gather(hidden, 1, expand)" in logged[1]
