"""Rows that are handed on between blocks that keep the same tokens: by which, and that all stays equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from unittest import mock

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from toprovar_fx.lowering import carried_norms, carried_rows, linked_step
from toprovar_fx.lowering.carried_rows import CarriedRows, with_carried_rows
from toprovar_fx.lowering.hand_on_rows import hand_on_rows
from toprovar_fx.lowering.region import Region
from toprovar_fx.lowering.region_calls import RegionCalls
from toprovar_fx.lowering.residuals import with_residuals

from .hopper_forms import called_blocks, hand_on_anywhere
from .models.fixtures import traced
from .models.subjects import OPEN, Outcome, identical, worst
from .oracles import replay
from .test_residuals import norm_over_less, other_factor, ours, weights_in_full_precision
from .test_rotations import arguments, on_cuda

PRUNED = "block: K tokens from block_input on"
# One map ranks the tokens of all layers.
ONE_MAP = {"entropy_source": "previous_scale", "ranking_depth": 0.0, "protected_layers_first": 0}


@pytest.fixture
def placed(regions: dict[str, Region], monkeypatch: pytest.MonkeyPatch) -> Region:
    """The block that writes its rows into the hidden state, as for a Hopper card."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    found = regions[PRUNED].rows_in_place()
    assert found is not None
    return found


def carried(region: Region) -> CarriedRows:
    found = with_carried_rows(on_cuda(region))
    assert found is not None
    return found


def test_a_chain_of_blocks(placed: Region) -> None:
    """Three blocks with their own weights and one keep set: equal bit for bit."""
    forms, layers = carried(placed), [arguments(placed) for _ in range(3)]
    for layer in layers[1:]:
        layer[forms.keep] = layers[0][forms.keep]
    copies = [[x.clone() if isinstance(x, Tensor) else x for x in layer] for layer in layers]
    hidden = layers[0][0]
    for layer in layers:
        hidden = placed.graph(hidden, *layer[1:])
    own = copies[0][0]
    modulations = [[layer[at] for at in forms.modulations] for layer in copies]
    rows, normed = forms.first(own, copies[0][forms.keep], *modulations[0])
    for layer, following in zip(copies, modulations[1:], strict=False):
        rows, normed = forms.middle(own, *layer[1:], rows, normed, *following)
    found = forms.last(own, *copies[-1][1:], rows, normed)
    assert found is own and torch.equal(own, hidden)


def test_what_is_left_of_a_block(placed: Region) -> None:
    """No norm, and no gathering of rows, but where the first of them are made."""
    forms = carried(placed)
    last = ["linear_add_norm", "linear_add_norm", "linear_add_rows"]
    for graph, operators in ((forms.middle, ["linear_add_norm"] * 3), (forms.last, last)):
        assert ours(with_residuals(graph)) == operators
        assert not with_residuals(graph).graph.find_nodes(op="call_function", target=F.layer_norm)
    assert not with_residuals(forms.middle).graph.find_nodes(op="call_method", target="index_put_")


def test_kernels_of_the_forms(placed: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = pytest.importorskip("benchmarks.hopper_stand_in", reason="needs Triton")
    forms = carried(placed)
    monkeypatch.undo()
    names = []
    for graph in (forms.first, forms.middle, forms.last):
        code = stand_in.generated_code(Region(graph, "inductor"), {})
        names.append([launch.name for launch in stand_in.read_launches(code)])
    first, middle, last = names
    assert len(first) == 1 and "gather" in first[0] and "native_layer_norm" in first[0]
    assert not [name for name in (*middle, *last) if name.startswith("triton")]
    assert middle[:-1] == last[:-1] and len(middle) == 7
    assert (middle[-1], last[-1]) == ("toprovar.linear_add_norm", "toprovar.linear_add_rows")


def hidden_of(graph: fx.GraphModule) -> fx.Node:
    found: fx.Node = next(iter(graph.graph.nodes))
    return found


def another_look_at_the_state(graph: fx.GraphModule) -> None:
    (put,) = graph.graph.find_nodes(op="call_method", target="index_put_")
    with graph.graph.inserting_before(put):
        graph.graph.call_method("sum", (hidden_of(graph),))


def rows_that_others_read(graph: fx.GraphModule) -> None:
    (put,) = graph.graph.find_nodes(op="call_method", target="index_put_")
    with graph.graph.inserting_before(put):
        graph.graph.call_method("sum", (put.args[2],))


def modulations_that_are_written(graph: fx.GraphModule) -> None:
    (own,) = (node for node in graph.graph.find_nodes(op="placeholder") if "ada_gss" in node.name)
    (put,) = graph.graph.find_nodes(op="call_method", target="index_put_")
    with graph.graph.inserting_before(put):
        graph.graph.call_method("mul_", (own, 2))


@pytest.mark.parametrize(
    "change",
    [
        another_look_at_the_state,
        rows_that_others_read,
        modulations_that_are_written,
        other_factor,
        norm_over_less,
        weights_in_full_precision,
    ],
)
def test_blocks_that_carry_nothing(placed: Region, change: Callable[[fx.GraphModule], None]) -> None:
    graph = on_cuda(placed)
    change(graph)
    assert with_carried_rows(graph) is None


def test_only_rows_in_place_and_on_hopper(
    placed: Region, regions: dict[str, Region], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_carried_rows(on_cuda(regions[PRUNED])) is None
    assert with_carried_rows(on_cuda(regions["block: all tokens"])) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert with_carried_rows(on_cuda(placed)) is None


# Whole generations


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets rows be handed on on a CPU; by step a letter for every call of a block.

    f for the first rows, m and l for blocks that hand them on and write them, p for pruned blocks alone, b
    for the others.
    """
    hand_on_anywhere(monkeypatch)
    found: list[str] = []

    def noted(calls: RegionCalls) -> bool:
        changed = hand_on_rows(calls)
        called = called_blocks(calls)
        letters = {"its rows": "f", "rows carried on": "m", "last rows": "l", "in place": "p"}
        found.append("".join(letters.get(how, "b") for how in called if how != "its first norm"))
        return changed

    monkeypatch.setattr(linked_step, "hand_on_rows", noted)
    return found


def generation_of(options: Mapping[str, object], **given: int) -> Outcome:
    with mock.patch.object(traced("infinity"), "programs", {}):
        return traced("infinity")(
            {**OPEN, **ONE_MAP, "restore": "residual", "unit": "step", **options}, **given
        )


@pytest.mark.parametrize(
    ("keep", "last"),
    [
        ({0: 0.5, 1: 0.5, 2: 0.5}, "fmmlb"),
        ({0: 0.5, 1: 0.25, 2: 0.25, 3: 0.25}, "flfmml"),
        ({1: 0.5, 2: 0.0, 3: 0.5}, "bpp"),
        ({0: 0.5, 2: 0.5}, "pbpb"),
        ({1: 0.5, 2: 0.5}, "bfmlb"),
    ],
    ids=["three in a row", "another K before", "one skipped between", "one dense between", "dense around"],
)
def test_layers_that_keep_the_same_tokens(anywhere: list[str], keep: dict[int, float], last: str) -> None:
    options = {"keep": {-2: keep, -1: keep}}
    found = generation_of(options, images=2)
    assert anywhere[-1] == last
    with pytest.MonkeyPatch.context() as patch:
        for module in (carried_norms, carried_rows):
            patch.setattr(module, "on_hopper", lambda graph: False)
        expected = generation_of(options, images=2)
    assert identical(found.logits, expected.logits)
    assert identical(found.state.keys, expected.state.keys)
    assert identical(found.state.values, expected.state.values)


def test_it_is_the_oracles_generation(anywhere: list[str]) -> None:
    found = generation_of({"keep": {-1: {0: 0.5, 1: 0.5, 2: 0.5}}})
    assert "m" in anywhere[-1]
    expected = replay(traced("infinity").subject, found.keeps, restore="residual")
    assert worst(found.logits, expected.logits) < 2e-5


def test_updates_of_the_tokens_left_out_need_the_state(anywhere: list[str]) -> None:
    generation_of({"keep": {-1: {1: 0.5, 2: 0.5}}, "restore": "cache"})
    assert not set("".join(anywhere)) & set("fml")


def test_keep_sets_of_their_own(anywhere: list[str]) -> None:
    """Each layer ranked by its own map."""
    generation_of({"keep": {-1: {1: 0.5, 2: 0.5}}, "ranking_depth": None})
    assert not set("".join(anywhere)) & set("fml")
