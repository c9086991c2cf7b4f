"""`benchmarks.host_step` times recorded steps, from the outside in."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.host_step import main, waits


@pytest.fixture(autouse=True)
def one_compilation():
    threads, limit = torch.get_num_threads(), torch._dynamo.config.recompile_limit
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = limit


@pytest.mark.parametrize("variant", ["lossless", "criterion"])
def test_what_is_inside_takes_less(variant, capsys):
    main(["--layers", "2", "--rounds", "2", "--repeats", "1", "--variant", variant])
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    (found,) = out["us_per_scale"]
    assert 0 < found["replay"] < found["program"] < found["model"]
    assert all(found[f"wait, {which}"] > 0 for which in ("first", "second", "others"))
    assert found["wait, others"] < 2 * found["model"]


def test_what_an_idle_card_waits_for():
    """Two generations of three scales, of which the second replays twice in its last scale."""
    calls = [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]
    replayed = [0.5, 1.25, 2.125, 10.25, 11.25, 12.125, 12.5]
    assert waits(calls, replayed, 3) == {"wait, first": 0.375, "wait, second": 0.25, "wait, others": 0.125}
    assert waits(calls, [], 3) == waits(calls, replayed[:1], 3) == {}
    assert waits(calls, replayed[:2] + replayed[3:], 3) == {}, "one in the middle"
    assert waits(calls, replayed[:5], 3) == {}, "the last"


def test_blocks_that_run_one_by_one_have_nothing_to_wait_for(capsys):
    main(["--layers", "2", "--rounds", "2", "--repeats", "1", "--variant", "lossless-block"])
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["us_per_scale"]
    assert 0 < found["program"] < found["model"]
    assert not any(name.startswith("wait") for name in found)


def test_an_unknown_variant_is_refused():
    with pytest.raises(SystemExit, match="--variant inductor: expected one of lossless"):
        main(["--layers", "1", "--variant", "inductor", "--repeats", "1"])
