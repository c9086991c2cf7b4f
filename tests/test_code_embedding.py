"""The tokens of the next scale are embedded where they are resampled, unless a model has its own way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from toprovar_fx.between_scales import BetweenScales
from toprovar_fx.models.bsq import BSQConfig, MultiScaleBSQ
from toprovar_fx.models.code_embedding import CodeEmbedding, embedding_of
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.runtime.cuda_graphs import GraphMemory

from .models.recorders import CpuRecorder
from .small_pipelines import PROMPTS, build

SIDES = ((1, 1), (2, 3), (4, 4))
BITS, WIDTH = 5, 7
SETTINGS = {"cfg": 3.0, "tau": 0.7, "top_p": 0.9}


def draw(pipe: InfinityPipeline) -> list[torch.Tensor]:
    bits: list[torch.Tensor] = pipe(PROMPTS[:2], seed=5).bits
    return bits


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_bits_are_those_of_a_model_that_embeds_by_itself(cfg, monkeypatch):
    pipe, calls = build(), []
    embed = Infinity.embed_scale
    found = pipe(PROMPTS[:2], seed=5, cfg=cfg).bits
    monkeypatch.setattr(Infinity, "code_embedding", lambda self: None)
    monkeypatch.setattr(Infinity, "embed_scale", lambda *given: calls.append(1) or embed(*given))
    assert same(found, pipe(PROMPTS[:2], seed=5, cfg=cfg).bits)
    assert len(calls) == len(pipe.schedule) - 1


def test_embeddings_that_are_plain_are_not_asked_for_again(monkeypatch):
    pipe, calls = build(), []
    monkeypatch.setattr(Infinity, "embed_scale", lambda *given: calls.append(1))
    # The class's own method is what the weights stand for.
    monkeypatch.setattr(
        Infinity, "code_embedding", lambda self: embedding_of(self.word_embed, self.lvl_embed)
    )
    draw(pipe)
    assert not calls


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def by_hook(model: Infinity) -> None:
    model.word_embed.register_forward_hook(lambda module, given, result: 2 * result)


def by_earlier_hook(model: Infinity) -> None:
    model.word_embed.register_forward_pre_hook(lambda module, given: (2 * given[0],))


def by_subclass(model: Infinity) -> None:
    linear = model.word_embed
    model.word_embed = Doubled(linear.in_features, linear.out_features)
    model.word_embed.load_state_dict(linear.state_dict())


def by_parametrisation(model: Infinity) -> None:
    parametrize.register_parametrization(model.word_embed, "weight", Twice())


def by_forward_of_the_instance(model: Infinity) -> None:
    forward = model.word_embed.forward
    model.word_embed.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]


def by_method_of_the_instance(model: Infinity) -> None:
    embed = model.embed_scale
    model.embed_scale = lambda *given: 2 * embed(*given)  # type: ignore[method-assign]


class OwnInfinity(Infinity):
    def embed_scale(self, codes: torch.Tensor, scale: int) -> torch.Tensor:
        return 2 * super().embed_scale(codes, scale)


def by_subclass_of_the_model(model: Infinity) -> None:
    model.__class__ = OwnInfinity


@pytest.mark.parametrize(
    "change",
    [
        by_hook,
        by_earlier_hook,
        by_subclass,
        by_parametrisation,
        by_forward_of_the_instance,
        by_method_of_the_instance,
        by_subclass_of_the_model,
    ],
)
def test_what_embeds_in_its_own_way_is_asked(change: Callable[[Infinity], None], monkeypatch):
    pipe = build()
    before = draw(pipe)
    change(pipe.transformer)
    assert pipe.transformer.code_embedding() is None
    found = draw(pipe)
    monkeypatch.setattr(type(pipe.transformer), "code_embedding", lambda self: None)
    assert same(found, draw(pipe)) and not same(found, before)


class Wrapper(nn.Module):
    """Hands everything on to a model, but for the embedding."""

    def __init__(self, model: Infinity) -> None:
        super().__init__()
        self.model = model

    def forward(self, *given: object) -> torch.Tensor:
        found: torch.Tensor = self.model(*given)
        return found

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def embed_scale(self, codes: torch.Tensor, scale: int) -> torch.Tensor:
        return 2 * self.model.embed_scale(codes, scale)


def test_what_wraps_a_model_may_embed_in_its_own_way():
    pipe, twice = build(), build()
    before = draw(pipe)
    twice.transformer.__class__ = OwnInfinity
    pipe.transformer = Wrapper(pipe.transformer)
    found = draw(pipe)
    assert same(found, draw(twice)) and not same(found, before)


def test_layers_without_a_bias_and_other_tables_are_not_plain():
    assert embedding_of(nn.Linear(2, 3, bias=False), nn.Embedding(4, 3)) is None
    assert embedding_of(nn.Linear(2, 3), nn.Linear(3, 4)) is None
    assert embedding_of(nn.Linear(2, 3), nn.Embedding(4, 3)) is not None


def test_a_sum_that_was_replaced_is_embedded_anew():
    pipe = build()
    with torch.no_grad():
        loop = pipe.begin(pipe.encode_prompts(PROMPTS[:1]), torch.tensor([3]), 3.0, 1.0, 0.97)
        loop.run_scale(0)
        known = loop.embed(1)
        loop.summed = loop.summed + 1
        codes = loop.quantizer.next_input(loop.summed, 0)
        wanted = pipe.transformer.embed_scale(codes, 1).repeat(2, 1, 1)
    assert torch.equal(loop.embed(1), wanted) and not torch.equal(known, wanted)


def test_where_gradients_are_wanted_the_embedding_has_them():
    pipe = build()
    loop = pipe.begin(pipe.encode_prompts(PROMPTS[:1]), torch.tensor([3]), 3.0, 1.0, 0.97)
    with torch.no_grad():
        loop.run_scale(0)
    assert not loop.embed(1).requires_grad
    with torch.enable_grad():
        loop.run_scale(1)
        assert loop.embed(2).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recording_sees_weights_that_change(dtype, monkeypatch):
    recorder = CpuRecorder()
    monkeypatch.setattr("toprovar_fx.between_scales.memory_of", lambda device: GraphMemory(recorder, False))
    between = BetweenScales(MultiScaleBSQ(BSQConfig(BITS, SIDES, 1)), "cpu")
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 2 * BITS, generator=source)
    inputs = logits, torch.rand(2, 6, BITS, generator=source), torch.randn(2, BITS, 4, 4, generator=source)
    weights = (torch.randn(*shape, generator=source).to(dtype) for shape in ((WIDTH, BITS), (WIDTH,), (3, 7)))
    embedding = CodeEmbedding(*weights)
    for _ in range(3):
        found = between(*inputs, 1, **SETTINGS, embedding=embedding, rows=4)
        assert found.tokens is not None and found.hidden is not None
        assert torch.equal(found.hidden, embedding(found.tokens, 2).repeat(2, 1, 1))
        embedding.weight.mul_(1.5)
        embedding.levels.add_(1)
    last = between(*inputs[:2], inputs[2], 1, **SETTINGS)
    assert last.hidden is None
    assert recorder.records == 2
