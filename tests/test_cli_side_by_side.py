"""Processes compile side by side, and nothing runs beside what is timed."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from toprovar_fx.__main__ import main
from toprovar_fx.cli.side_by_side import groups_of, side_by_side
from toprovar_fx.cli.variants import parse_variants
from toprovar_fx.errors import OptionError

from .bench_groups import one_fails, themselves

VARIANTS = parse_variants("eager,inductor,lossless,fast,balanced,skipvar")


def names(groups):
    return [[variant.name for variant in group] for group in groups]


def test_every_group_has_the_baselines():
    assert names(groups_of(VARIANTS, 3)) == [
        ["eager", "inductor", "lossless", "skipvar"],
        ["eager", "inductor", "fast"],
        ["eager", "inductor", "balanced"],
    ]
    assert len(groups_of(VARIANTS, 9)) == 4, "no group of baselines alone"
    assert names(groups_of(VARIANTS[:2], 3)) == [["eager", "inductor"]]
    assert names(groups_of(VARIANTS, 1)) == names([VARIANTS])


def test_nothing_is_timed_beside_another_group_or_its_compilation():
    found = side_by_side(themselves, groups_of(VARIANTS, 3))
    rows = found["variants"]
    assert sorted(row["name"] for row in rows) == sorted(variant.name for variant in VARIANTS)
    assert len({row["process"] for row in rows}) == 3
    timed = sorted({row["timed"] for row in rows})
    assert timed[0][0] >= max(row["compiled"] for row in rows)
    assert all(before[1] <= after[0] for before, after in pairwise(timed))
    assert found["graphs_compiled_while_timing"] == found["rounds"] == 3
    assert found["left_out"] == {"not skipvar": "skipvar", "not fast": "fast", "not balanced": "balanced"}


def test_a_process_that_fails_holds_up_nobody():
    with pytest.raises(OptionError, match="fast cannot be"):
        side_by_side(one_fails, groups_of(VARIANTS, 2))


@pytest.mark.nightly
def test_the_command_joins_the_groups(capsys):
    """One process has nothing but what `fastvar` cannot reach; rows are in the order of the variants."""
    some, none, all_ = (
        "random:lowering=eager:keep={-1: 0.5}",
        "fastvar:budget=9x:scale_exit=None",
        "lossless:lowering=eager",
    )
    given = ["bench", "--repeats", "2", "--device", "cpu", "--json", "--processes", "2", "--variants"]
    assert main([*given, f"{some},{none},{all_}"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in found["variants"]] == [some, all_]
    assert list(found["left_out"]) == [none]
    assert (found["rounds"], found["processes"], found["graphs_compiled_while_timing"]) == (2, 2, 0)
    assert main([*given, f"{none},sparsevar:budget=99x:scale_exit=None"]) == 2
    assert "at most" in capsys.readouterr().err
