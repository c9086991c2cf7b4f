"""`benchmarks.host_step` times recorded steps, from the outside in."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.host_step import main


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


def test_an_unknown_variant_is_refused():
    with pytest.raises(SystemExit, match="--variant inductor: expected one of lossless"):
        main(["--layers", "1", "--variant", "inductor", "--repeats", "1"])
