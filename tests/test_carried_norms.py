"""Norms that are handed on from block to block: which blocks can, and that a generation stays the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from unittest import mock

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from toprovar_fx import equal_blocks
from toprovar_fx.analysis.graph_sizes import spec_of
from toprovar_fx.lowering import carried_norms, linked_step
from toprovar_fx.lowering.carried_norms import CarriedNorm, with_carried_norm
from toprovar_fx.lowering.hand_on_norms import hand_on_norms
from toprovar_fx.lowering.region import Region
from toprovar_fx.lowering.region_calls import RegionCalls
from toprovar_fx.lowering.residuals import with_residuals
from toprovar_fx.options import Options

from .hopper_forms import called_blocks, hand_on_anywhere
from .models.fixtures import eager, traced
from .models.subjects import OPEN, Outcome, generate, identical
from .test_residuals import norm_over_less, other_factor, ours, weights_in_full_precision
from .test_rotations import arguments, on_cuda

DENSE, PRUNED = "block: all tokens", "block: K tokens from block_input on"


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


@pytest.fixture
def carried(regions: dict[str, Region], hopper: None) -> CarriedNorm:
    found = with_carried_norm(on_cuda(regions[DENSE]))
    assert found is not None
    return found


def test_a_chain_of_blocks(regions: dict[str, Region], carried: CarriedNorm) -> None:
    """Three blocks with their own weights, plainly and with norms handed on: equal bit for bit."""
    region = regions[DENSE]
    layers = [arguments(region) for _ in range(3)]
    copies = [[x.clone() if isinstance(x, torch.Tensor) else x for x in layer] for layer in layers]
    hidden = layers[0][0]
    for layer in layers:
        hidden = region.graph(hidden, *layer[1:])
    own = copies[0][0]
    norm = carried.norm(own, *(copies[0][at] for at in carried.modulations))
    for layer, following in zip(copies, (*copies[1:], copies[-1]), strict=True):
        modulations = [following[at] for at in carried.modulations]
        own, norm = carried.graph(own, *layer[1:], norm, *modulations)
    assert torch.equal(own, hidden)


def test_a_carried_block_has_no_norm_of_its_own(carried: CarriedNorm) -> None:
    graph = with_residuals(carried.graph)
    assert ours(graph) == ["linear_add_norm"] * 3
    assert not graph.graph.find_nodes(op="call_function", target=F.layer_norm)


def modulations_in_full_precision(graph: fx.GraphModule) -> None:
    for node in graph.graph.find_nodes(op="placeholder"):
        if "gss" in node.name:
            node.meta["toprovar_spec"] = replace(spec_of(node), dtype=torch.float32)


def modulations_that_are_written(graph: fx.GraphModule) -> None:
    (own,) = (node for node in graph.graph.find_nodes(op="placeholder") if "ada_gss" in node.name)
    output = next(node for node in graph.graph.nodes if node.op == "output")
    with graph.graph.inserting_before(output):
        graph.graph.call_method("mul_", (own, 2))


@pytest.mark.usefixtures("hopper")
def test_blocks_that_carry_nothing(regions: dict[str, Region], monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_carried_norm(regions[DENSE].graph) is None, "on a CPU"
    assert with_carried_norm(on_cuda(regions[PRUNED])) is None
    assert with_carried_norm(on_cuda(regions[f"{DENSE}, entropies"])) is None
    for change in (
        other_factor,
        weights_in_full_precision,
        norm_over_less,
        modulations_in_full_precision,
        modulations_that_are_written,
    ):
        graph = on_cuda(regions[DENSE])
        change(graph)
        assert with_carried_norm(graph) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert with_carried_norm(on_cuda(regions[DENSE])) is None


# Whole generations


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets blocks carry norms on a CPU; how the layers of every step that was linked since run."""
    hand_on_anywhere(monkeypatch)
    return linked(monkeypatch, linked_step)


def linked(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[str]:
    """By step, a letter for every call of a block: n for a norm, c where it carries its own, b for others."""
    found: list[str] = []

    def noted(calls: RegionCalls) -> bool:
        changed = hand_on_norms(calls)
        called = called_blocks(calls)
        letters = {"its first norm": "n", "norm carried on": "c"}
        found.append("".join(letters.get(how, "b") for how in called))
        return changed

    monkeypatch.setattr(module, "hand_on_norms", noted)
    return found


def generation_of(options: Mapping[str, object], name: str = "infinity") -> Outcome:
    with mock.patch.object(traced(name), "programs", {}):
        return traced(name)({**OPEN, "unit": "step", **options})


def test_a_dense_generation_is_the_untouched_model(anywhere: list[str]) -> None:
    found = generation_of({"preset": "lossless"})
    assert identical(found.logits, eager("infinity").logits)
    assert set(anywhere) == {"ncccc"}


@pytest.mark.parametrize(
    ("keep", "last"),
    [
        ({-1: {0: 0.5}}, "bnccc"),
        ({-1: {2: 0.5}}, "nccbb"),
        ({-1: {1: 0.0}}, "bncc"),
        ({-1: {1: 0.5, 3: 0.5}}, "bbbb"),
    ],
    ids=["the first pruned", "one between", "one skipped", "no two together"],
)
def test_pruned_layers_in_between(anywhere: list[str], keep: dict[int, dict[int, float]], last: str) -> None:
    options = {"keep": keep, "protected_layers_first": 0, "score": "random", "restore": "residual"}
    found = generation_of(options)
    assert anywhere[-1] == last and set(anywhere) == {"ncccc", last}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carried_norms, "on_hopper", lambda graph: False)
        expected = generation_of(options)
    assert identical(found.logits, expected.logits)
    assert identical(found.state.keys, expected.state.keys)


def test_a_hidden_state_that_something_else_reads(anywhere: list[str]) -> None:
    """Updates that restore pruned tokens are what a block made less what it got."""
    options = {"keep": {-1: {1: 0.5}}, "protected_layers_first": 0, "score": "random"}
    found = generation_of(options)
    assert "ncccc" in anywhere
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carried_norms, "on_hopper", lambda graph: False)
        expected = generation_of(options)
    assert identical(found.logits, expected.logits)


@pytest.mark.parametrize("name", ["prenorm-fused-rope", "prenorm-separate-absolute"])
def test_affine_norms(anywhere: list[str], name: str) -> None:
    found = generation_of({"preset": "lossless"}, name)
    assert identical(found.logits, eager(name).logits)
    assert set(anywhere) == {"ncccc"}


def test_a_token_alone(anywhere: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that is outlined for its equal blocks, as that of one token where calls are recorded."""
    found = linked(monkeypatch, equal_blocks)
    parts: list[list[Region]] = []

    def backend(gm: fx.GraphModule, inputs: list[object]) -> Callable[..., object]:
        made = equal_blocks.by_equal_blocks(gm, Options.parse({"preset": "lossless"}), "eager")
        assert made is not None
        parts.append(made[1])
        return made[0]

    subject = traced("infinity").subject
    ours, plain = generate(subject, traced("infinity").through(backend)), eager("infinity")
    assert identical(ours.logits, plain.logits) and identical(ours.state.keys, plain.state.keys)
    assert set(found) == {"ncccc"}
    assert any("norm carried on" in region.name for region in parts[0])
