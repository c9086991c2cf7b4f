"""What the documentation names is there: commands and their options, files, links."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from toprovar_fx.cli.app import app

from .checkout import ROOT, repository_files

CARD = ROOT / "toprovar_fx/weights/MODEL_CARD.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), CARD]
# The option that tests/conftest.py adds.
OF_PYTEST = {"--nightly"}

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


def code(text: str) -> list[str]:
    """Commands in a page: lines of blocks, joined where they go on, and spans between backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    blocks += re.findall(r"((?:^ {4}.*\n)+)", text, re.M)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def options_of_toprovar() -> dict[str, set[str]]:
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in commands.items()
    }


def options_of_module(path: Path) -> set[str]:
    """Options that a module of ours adds to its argument parser."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    added = (call.args[0] for call in calls if getattr(call.func, "attr", "") == "add_argument" and call.args)
    return {str(name.value) for name in added if isinstance(name, ast.Constant)}


def options_by_command() -> dict[str, set[str]]:
    found = {f"toprovar {name}": options for name, options in options_of_toprovar().items()}
    for path in (ROOT / "benchmarks").glob("*.py"):
        if '__name__ == "__main__"' in path.read_text():
            found[f"python -m benchmarks.{path.stem}"] = options_of_module(path)
    found["python -m toprovar_fx.training"] = options_of_module(ROOT / "toprovar_fx/training/program.py")
    return found


def command_of(line: str) -> str | None:
    """`toprovar NAME` or `python -m MODULE` at the start of a line of code."""
    found = re.match(r"(?:toprovar [a-z]+|python -m [\w.]+)(?![\w.])", line)
    return found.group() if found else None


@page
def test_commands_exist_with_their_options(path: Path) -> None:
    known = options_by_command()
    wrong = []
    for line in code(path.read_text()):
        command = command_of(line.removeprefix("$ "))
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line))
        if command == "python -m pytest":
            missing = named - OF_PYTEST
        elif command is not None:
            missing = named - known[command] if command in known else {command}
        else:
            missing = named - set().union(*known.values(), OF_PYTEST, {"--version"})
        wrong += [f"{line}: {name}" for name in sorted(missing)]
    assert not wrong


def test_the_check_sees_wrong_options() -> None:
    text = (
        "`toprovar bench --repeat 3`\n\n```bash\ntoprovar eval \\\n  --presets x\n```\n\n    toprovar tun\n"
    )
    known = options_by_command()
    lines = code(text)
    assert [command_of(line) for line in lines] == ["toprovar eval", "toprovar tun", "toprovar bench"]
    assert "--presets x" in lines[0] and "--presets" not in known["toprovar eval"]
    assert "toprovar tun" not in known and "--repeats" in known["toprovar bench"]


@page
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        if re.match(r"https?:", target):
            continue
        goal = path if not file else path.parent / file
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            broken.append(target)
    assert not broken


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@page
def test_files_of_the_repository_are_there(path: Path) -> None:
    """A path between backticks is the end of one that git knows, in whatever folder it begins."""
    files = {f"/{file.relative_to(ROOT).as_posix()}" for file in repository_files()}
    files |= {file.replace("/passes/", "/toprovar_fx/passes/", 1) for file in files}
    named = re.findall(r"`([\w./]*\w/?\.py|(?:tests|benchmarks|docs|toprovar_fx)/[\w./]+)`", path.read_text())
    missing = [name for name in named if not any(f"/{name.strip('/')}" in f"{file}/" for file in files)]
    assert not missing


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_prose_has_lines_of_at_most_120_characters(path: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    # Rows of tables and pictures cannot be broken.
    long = [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]
    assert not long
