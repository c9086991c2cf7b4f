"""A dense step of calls: blocks that are alike are compiled once, and compute what the graph computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from toprovar_fx.dense_program import DenseProgram
from toprovar_fx.equal_blocks import by_equal_blocks
from toprovar_fx.live_programs import programs
from toprovar_fx.lowering.rest import RegionCall
from toprovar_fx.options import Options

from .models.fixtures import NAMES, traced
from .models.subjects import SQUARE, TinyInfinity, generate, identical, worst
from .replayed_steps import LOSSLESS, Kept, compiled


def apart(compile):
    """A model through `by_equal_blocks` with eager blocks, at every token count, and what that made."""
    made = []

    def backend(gm: fx.GraphModule, inputs):
        made.append(by_equal_blocks(gm, Options.parse({"preset": "lossless"}), "eager"))
        return gm.forward if made[-1] is None else made[-1][0]

    return compile(backend), made


@pytest.mark.parametrize("name", NAMES)
def test_calls_of_blocks_compute_what_the_graph_computes(name):
    """Bit for bit, with the rows that they cache, and from fewer graphs than the model has layers."""
    subject = traced(name).subject
    forward, made = apart(traced(name).through)
    for images, seed in ((1, 1), (2, 2)):
        expected = generate(subject, subject.model, images, seed=seed)
        found = generate(subject, forward, images, seed=seed)
        assert identical(found.logits, expected.logits)
        assert identical(found.state.keys, expected.state.keys)
        assert identical(found.state.values, expected.state.values)
    for forward, regions in made:
        blocks = [region for region in regions if region.name == "block, dense"]
        assert 1 <= len(blocks) < subject.layers, name
        assert all(isinstance(child, RegionCall) for child in forward.__self__.children()), "called as traced"


def test_floats_of_the_model_are_guarded(many_graphs):
    """`dynamic=True` hands a norm's epsilon over as an input, of which the calls make a constant."""
    subject = TinyInfinity(depth=2)
    forward, made = apart(lambda backend: torch.compile(subject.model, backend=backend, dynamic=True))
    generate(subject, forward)
    known = len(made)
    for norm in (block.ca_norm for block in subject.model.blocks()):
        norm.eps *= 1e3
    assert identical(generate(subject, forward).logits, generate(subject, subject.model).logits)
    assert len(made) > known


def test_a_graph_without_equal_blocks_is_left_whole(many_graphs):
    subject = TinyInfinity(depth=1)
    forward, made = apart(lambda backend: torch.compile(subject.model, backend=backend))
    assert identical(generate(subject, forward).logits, generate(subject, subject.model).logits)
    assert set(made) == {None}
    traced = fx.symbolic_trace(torch.nn.Linear(2, 2))
    assert by_equal_blocks(traced, Options.parse({}), "eager") is None, "nothing attends"


class Sliding(nn.Module):
    """Values move up in their cache, and are read through a view that was made before the layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projections = nn.ModuleList(nn.Linear(32, 96) for _ in range(3))

    def forward(self, x, caches, start, end):
        seen = [values[:, :, :end] for _, values in caches]
        for project, (keys, values), earlier in zip(self.projections, caches, seen, strict=True):
            q, k, v = project(x).view(2, -1, 3, 2, 16).permute(2, 0, 3, 1, 4)
            keys[:, :, start:end] = k
            values.copy_(torch.cat([values[:, :, v.shape[2] :], v], 2))
            x = x + F.scaled_dot_product_attention(q, keys[:, :, :end], earlier).transpose(1, 2).reshape(
                x.shape
            )
        return x


def test_a_block_that_is_given_what_it_writes_twice_is_left_whole(fresh_dynamo):
    """Its compiler would take the two for apart; through Inductor the result was off by a third."""
    model, made = Sliding().eval(), []

    def backend(gm: fx.GraphModule, inputs):
        made.append(by_equal_blocks(gm, Options.parse({"preset": "lossless"}), "inductor"))
        return gm.forward if made[-1] is None else made[-1][0]

    def caches():
        source = torch.Generator().manual_seed(3)
        return [tuple(torch.randn(2, 2, 2, 6, 16, generator=source)) for _ in range(3)]

    x, ours, theirs = torch.randn(2, 1, 32), caches(), caches()
    with torch.inference_mode():
        found = torch.compile(model, backend=backend, fullgraph=True)(x, ours, 2, 3)
        torch.testing.assert_close(found, model(x, theirs, 2, 3))
    torch.testing.assert_close(ours, theirs)
    assert made == [None]


def test_a_fault_in_the_outlining_compiles_the_graph_whole(recorder, monkeypatch):
    def broken(traced):
        raise RuntimeError("a fault")

    monkeypatch.setattr("toprovar_fx.equal_blocks.outline_unread_blocks", broken)
    monkeypatch.setattr("toprovar_fx.backend._on_cuda", lambda inputs: True)
    monkeypatch.setattr("toprovar_fx.backend.compile_with_dynamo_inputs", lambda gm, inputs: gm.forward)
    subject, options = TinyInfinity(depth=2), {**LOSSLESS, "lowering": "inductor"}
    hidden = subject.hidden(1, 0, SQUARE)
    subject.use(SQUARE)
    state = subject.state(1, SQUARE)
    with torch.inference_mode():
        expected = subject.model(*subject.arguments(hidden, subject.state(1, SQUARE), 1))
        found = compiled(subject, options)(*subject.arguments(hidden, state, 1))
        assert torch.equal(found, expected)
        torch.compiler.reset()
        with pytest.raises(Exception, match="a fault"):
            compiled(subject, options, on_error="raise")(*subject.arguments(hidden, state, 1))


def one_token(options):
    """The program of the scale of one token that these options made."""
    made = [program for program in programs(options) if isinstance(program, DenseProgram)]
    (found,) = (program for program in made if program.one_token)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("code", ["shared", pytest.param("fused", marks=pytest.mark.nightly)])
def test_a_recorded_token_is_compiled_once_for_all_layers(recorder, code):
    subject = Kept()
    options = {**LOSSLESS, "lowering": "inductor", "step_code": code}
    forward = compiled(subject, options)
    first, second = (generate(subject, forward, seed=seed).logits[:1] for seed in (1, 1))
    assert identical(first, second)
    assert worst(first, generate(subject, subject.model).logits[:1]) < 1e-4
    assert recorder.records == len(SQUARE)
    whole, *parts = one_token(Options.parse(options)).regions
    if code == "fused":
        assert len(whole.compile_seconds) == 1 and not parts
        return
    assert not whole.compile_seconds
    names = [region.name for region in parts]
    assert names.count("block, dense") == 1
    assert {len(region.compile_seconds) for region in parts} == {1}
