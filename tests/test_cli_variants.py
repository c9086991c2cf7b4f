from __future__ import annotations

import gc
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx

from toprovar_fx.cli.variants import (
    DEFAULT_VARIANTS,
    CompiledGraphs,
    Variant,
    parse_variant,
    parse_variants,
    room_for_graphs,
)
from toprovar_fx.errors import OptionError

from .cli_fakes import FakePipeline
from .models.subjects import MANY_GRAPHS, TinyInfinity, generate


def test_every_kind() -> None:
    text = "eager, inductor,inductor:max-autotune,fast:tau=0.5:strict=true"
    eager, inductor, mode, preset = parse_variants(text)
    assert eager == Variant("eager")
    assert inductor == Variant("inductor", "inductor", "default")
    assert mode == Variant("inductor:max-autotune", "inductor", "max-autotune")
    assert preset.compiler == "toprovar"
    assert preset.options == {"preset": "fast", "tau": 0.5, "strict": True}


def test_commas_and_colons_inside_brackets_belong_to_the_value() -> None:
    first, second = parse_variants("balanced:buckets=(0.1, 0.5),lossless")
    assert first.options == {"preset": "balanced", "buckets": (0.1, 0.5)}
    assert second.options == {"preset": "lossless"}
    (third,) = parse_variants("lossless:keep={-1: 0.25, -2: {3: 0.5}}:strict=true")
    assert third.options == {"preset": "lossless", "keep": {-1: 0.25, -2: {3: 0.5}}, "strict": True}


def test_the_default_is_valid() -> None:
    assert [variant.name for variant in parse_variants(",".join(DEFAULT_VARIANTS))] == list(DEFAULT_VARIANTS)


WRONG = ["", "eager,", "eager,eager", "eagr", "eager:x", "inductor:fast", "fast:nix=1"]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_variants(text: str) -> None:
    with pytest.raises(OptionError):
        parse_variants(text)


def test_an_eager_copy_shares_the_transformer() -> None:
    dense = FakePipeline()
    pipe = parse_variant("eager").pipeline(dense)  # type: ignore[arg-type]
    assert pipe is not dense
    assert pipe.transformer is dense.transformer


def test_a_compiled_copy_leaves_the_original_alone() -> None:
    dense = FakePipeline()
    transformer = dense.transformer
    pipe = parse_variant("inductor").pipeline(dense)  # type: ignore[arg-type]
    assert dense.transformer is transformer
    assert isinstance(pipe.transformer, torch._dynamo.OptimizedModule)
    assert pipe.transformer._orig_mod is transformer


OTHER_SIZES = {
    "lossless:scale_exit=6": "scale_exit=6: expected an index from -6 to 5; nearest valid: 5",
    "lossless:scale_exit=-7": "scale_exit=-7: expected an index from -6 to 5; nearest valid: -6",
    "criterion:depth=fixed:depth_scale=9": "depth_scale=9: expected an index from -6 to 5",
    "criterion:depth_layers=[4]": "depth_layers=4: expected an index from -4 to 3; nearest valid: 3",
    "criterion:min_scale=6": "min_scale=6: expected an index from -6 to 5",
    "criterion:guidance_until=7": "guidance_until=7: expected an index from -6 to 5",
    "fast:keep={6: 0.5}": "keep=6: expected scales from -6 to 5",
    "fast:keep={2: {4: 0.5}}": "keep of scale 2, layer=4: expected an index from -4 to 3; nearest valid: 3",
}


@pytest.mark.parametrize("text", OTHER_SIZES)
def test_a_scale_or_layer_that_the_model_does_not_have_is_refused_before_it_runs(text: str) -> None:
    dense: Any = SimpleNamespace(schedule=range(6), transformer=TinyInfinity(4).model)
    with pytest.raises(OptionError, match=re.escape(OTHER_SIZES[text])):
        parse_variant(text).pipeline(dense)


def test_no_variant_of_many_runs_eagerly(fresh_dynamo, monkeypatch) -> None:
    """Dynamo has two limits of one function's graphs, beyond which it runs the function as it is."""
    ran: list[int] = []

    def variant(at: int) -> Any:
        def backend(gm: fx.GraphModule, inputs: list[Any]) -> Any:
            return lambda *given: (ran.append(at), gm.forward(*given))[1]

        return torch.compile(lambda x: double(x), backend=backend)

    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    monkeypatch.setattr("toprovar_fx.cli.variants.GRAPHS_PER_VARIANT", 1)
    calls = [variant(at) for at in range(12)]
    few = torch._dynamo.config.patch(recompile_limit=3, accumulated_recompile_limit=6)
    with few, room_for_graphs(len(calls)):
        for call in calls:
            assert call(torch.ones(1)) == 2
    assert ran == list(range(12))


def test_the_count_of_graphs_never_falls(fresh_dynamo) -> None:
    counted = CompiledGraphs()
    before = counted()
    subject = TinyInfinity(depth=2)
    with MANY_GRAPHS:
        options = {"preset": "lossless", "lowering": "eager"}
        forward = torch.compile(subject.model, backend="toprovar", options=options)
        generate(subject, forward)
        after = counted()
        assert after > before
        generate(subject, forward)
        assert counted() == after
    del forward, subject
    gc.collect()
    assert counted() == after
