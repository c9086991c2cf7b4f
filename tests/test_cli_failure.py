from __future__ import annotations

import pytest
import torch

from toprovar_fx.cli.failure import guarded
from toprovar_fx.errors import OptionError


def failing(error: BaseException) -> int:
    def command(arguments: list[str]) -> int:
        raise error

    return guarded(command, [])


def test_success_returns_the_commands_code() -> None:
    assert guarded(lambda arguments: len(arguments), ["a", "b", "c"]) == 3


def test_an_error_of_the_package_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(OptionError("a\nb")) == 2
    captured = capsys.readouterr()
    assert captured.err == "toprovar: error: a b\n"
    assert captured.out == ""


def test_an_error_that_dynamo_wrapped_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise OptionError("tau=2: expected less")

    def command(arguments: list[str]) -> int:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
        return 0

    assert guarded(command, []) == 2
    assert capsys.readouterr().err == "toprovar: error: tau=2: expected less\n"


def test_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interruption_that_typer_caught(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda arguments: 130, []) == 130
    assert capsys.readouterr().err == "toprovar: interrupted; finished files are intact\n"


def test_a_missing_extra_names_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(ModuleNotFoundError("No module named 'PIL.Image'", name="PIL.Image")) == 2
    assert "pip install 'toprovar-fx[demo]'" in capsys.readouterr().err


def test_a_path_that_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(OSError(36, "File name too long", "nnn")) == 2
    assert capsys.readouterr().err == "toprovar: error: cannot use 'nnn': File name too long\n"
    with pytest.raises(OSError, match="a pipe"):  # without a path it is no input of the caller
        failing(OSError("a pipe"))


def test_defects_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())
    with pytest.raises(ModuleNotFoundError):
        failing(ModuleNotFoundError("No module named 'toprovar_fx.x'", name="toprovar_fx.x"))
