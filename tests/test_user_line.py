"""Warnings of the backend name a line that the user wrote."""

from __future__ import annotations

import inspect
import warnings
from contextlib import ExitStack

import pytest
import torch
from torch import fx

from toprovar_fx import Schedule, backend, generation, user_line
from toprovar_fx.user_line import warn_at_user_line

from .models.prenorm import PreNorm


def line() -> int:
    """The line that calls this."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def only(caught: list[warnings.WarningMessage], what: str) -> tuple[str, int]:
    """File and line of the one warning that says `what`."""
    [said] = [entry for entry in caught if what in str(entry.message)]
    return said.filename, said.lineno


def as_graph() -> fx.GraphModule:
    """A graph of torch.fx that warns."""
    graph = fx.Graph()
    graph.output(graph.call_function(warn_at_user_line, ("said",)))
    return fx.GraphModule(torch.nn.Module(), graph)


def test_a_graph_of_torch_is_not_the_users_line():
    module = as_graph()
    with pytest.warns(RuntimeWarning) as caught:
        expected, _ = line(), module()
    assert only(caught, "said") == (__file__, expected)


def test_nor_is_contextlib():
    with pytest.warns(RuntimeWarning) as caught, ExitStack() as stack:
        stack.callback(warn_at_user_line, "said")
        expected, _ = line(), stack.close()
    assert only(caught, "said") == (__file__, expected)


def test_without_a_frame_of_the_user_it_is_what_python_says(monkeypatch):
    monkeypatch.setattr(user_line, "_NOT_THE_USERS", ("",))
    with pytest.warns(RuntimeWarning) as caught:
        warn_at_user_line("said")
    assert only(caught, "said") == ("sys", 1)


def test_one_place_warns_once_by_default():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn_at_user_line("said")
    assert len(caught) == 1


def test_an_idle_generation_names_its_with_statement():
    compiled = torch.compile(torch.nn.Linear(4, 4), backend="toprovar", options={"lowering": "eager"})
    with torch.no_grad(), pytest.warns(RuntimeWarning) as caught:
        first = line() + 1
        with generation(Schedule(((1, 1),))) as run:
            run.begin_scale(0)
            compiled(torch.randn(2, 3, 4))
    file, number = only(caught, "ran without a prunable graph")
    assert file == __file__
    assert first <= number <= first + 2


def test_a_graph_outside_a_generation_names_the_code_that_was_compiled():
    model = PreNorm().eval()
    compiled = torch.compile(model, backend="toprovar", options={"lowering": "eager"})
    cache = model.new_cache(2)
    with torch.no_grad(), pytest.warns(RuntimeWarning) as caught:
        for length, end in ((1, 1), (4, 5), (9, 14)):
            compiled(torch.randn(2, length, 32), cache, end)
    file, _ = only(caught, "outside a generation")
    assert file == inspect.getsourcefile(PreNorm)


def test_a_failed_compilation_names_the_call_that_asked_for_it(monkeypatch):
    def fails(*_: object) -> None:
        raise ValueError("as if the compiler had a fault")

    monkeypatch.setattr(backend, "compile_with_dynamo_inputs", fails)
    torch.compiler.reset()
    compiled = torch.compile(torch.nn.Linear(4, 4), backend="toprovar")
    with torch.inference_mode(), pytest.warns(RuntimeWarning) as caught:
        expected, _ = line(), compiled(torch.randn(2, 3, 4))
    assert only(caught, "NOT_COMPILED") == (__file__, expected)
