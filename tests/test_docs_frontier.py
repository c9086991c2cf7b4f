"""The commands of docs/frontier.md: every option is one, every preset, policy and group exists."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from benchmarks.ablation_variants import GROUPS
from toprovar_fx.cli.app import app
from toprovar_fx.cli.variants import at_budgets, parse_variants

ROOT = Path(__file__).resolve().parents[1]


def commands() -> list[list[str]]:
    """The words of every command of the page, its variables put in."""
    text = (ROOT / "docs" / "frontier.md").read_text().replace("\\\n", "")
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    known: dict[str, str] = {}
    found = []
    for line in "\n".join(blocks).splitlines():
        if set_here := re.fullmatch(r"([A-Z])=(.*)", line):
            known[set_here[1]] = set_here[2].strip('"')
            continue
        line = re.sub(r"\$([A-Z])\b", lambda name: known[name[1]], line)
        words = shlex.split(re.sub(r"^CUDA_VISIBLE_DEVICES=\d ", "", line))
        if words[:1] == ["toprovar"] or words[:2] == ["python", "-m"]:
            found.append([word for word in words if word != "&"])
    return found


def values(words: list[str], flag: str) -> list[str]:
    return [after for before, after in pairwise(words) if before == flag]


def ids(words: list[str]) -> str:
    return " ".join(words[:4])


@pytest.mark.parametrize("words", commands(), ids=ids)
def test_a_command_can_be_run(words):
    flags = {word for word in words if word.startswith("--")}
    if words[0] == "python":
        script = (ROOT / f"{words[2].replace('.', '/')}.py").read_text()
        assert flags <= set(re.findall(r'"(--[a-z-]+)"', script))
        for groups in values(words, "--groups"):
            assert set(groups.split(",")) <= GROUPS.keys()
        return
    own = typer.main.get_command(app).commands[words[1]]
    assert flags <= {option for parameter in own.params for option in parameter.opts}
    presets = [name for name in values(words, "--preset") if not name.endswith(".json")]
    assert len(at_budgets(presets, [3.0])) >= len(presets)
    for variants in values(words, "--variants"):
        assert len(parse_variants(variants, [3.0])) >= 20


def test_all_commands_are_seen():
    called = [words[2] if words[0] == "python" else words[1] for words in commands()]
    assert {"eval", "report", "tune", "bench", "calibrate", "gallery"} <= set(called)
    assert {"skip_classifier", "ablation", "taps", "attention_entropy"} <= {
        name.removeprefix("benchmarks.") for name in called
    }
