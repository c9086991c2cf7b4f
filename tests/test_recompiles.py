"""Nothing is compiled twice: for a second image, a batch size that was seen, and after an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from toprovar_fx.live_programs import programs
from toprovar_fx.options import Options
from toprovar_fx.runtime.controller import Controller

from .models.subjects import MANY_GRAPHS, OPEN, Outcome, TinyPreNorm, generate, identical, worst

pytestmark = pytest.mark.slow

HOST = {**OPEN, "keep": {3: 0.5, 4: 0.3, 5: 0.25}, "score": "frequency"}
# Layer 1 of 2 branches: after D, found at scale 2, it runs whole, then on K tokens, then not at all.
GRAPH = {
    **OPEN,
    "gate": "graph",
    "entropy_source": "dense_layer",
    "buckets": (0.3,),
    "min_scale": 2,
    "tau": 0.3,
    "layer_scope": "off",
    "layer_skip_below": 0.25,
}
Forward = Callable[..., Any]


@pytest.fixture(scope="module")
def subject() -> TinyPreNorm:
    return TinyPreNorm(True, True, depth=2)


@pytest.fixture(scope="module", autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    with MANY_GRAPHS:
        yield
    torch.compiler.reset()


def compiled(subject: TinyPreNorm, options: dict[str, object]) -> Forward:
    return torch.compile(subject.model, backend="toprovar", options=options)


def compilations(options: dict[str, object]) -> tuple[int, int]:
    """Graphs that Dynamo captured under these options, and compilations by Inductor in all of them."""
    found = programs(Options.parse(options))
    regions = {id(region): region for program in found for region in program.regions}
    return len(found), sum(len(region.compile_seconds) for region in regions.values())


def interrupt(subject: TinyPreNorm, forward: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation that fails between two layers of its fourth scale."""
    finish = Controller.finish

    def fail(self: Controller, layer: int, *args: Any, **kwargs: Any) -> None:
        if self.scale == 3:
            raise MemoryError
        finish(self, layer, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(Controller, "finish", fail)
        generate(subject, forward)


def test_second_images_batches_seen_before_and_exceptions(subject, monkeypatch):
    forward = compiled(subject, HOST)
    first = {images: generate(subject, forward, images=images) for images in (1, 2, 3)}
    before = compilations(HOST)
    assert before[1] > 0
    with torch.compiler.set_stance("fail_on_recompile"):
        for images in (2, 1, 3):
            assert identical(generate(subject, forward, images=images).logits, first[images].logits)
        interrupt(subject, forward, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            generate(subject, forward, fail_at=4)
        assert identical(generate(subject, forward).logits, first[1].logits)
        generate(subject, forward, images=2, seed=5)
    assert compilations(HOST) == before


@pytest.mark.nightly
def test_branches_in_compiled_graphs(subject, monkeypatch):
    forward = compiled(subject, GRAPH)
    outcome = generate(subject, forward)
    plain = {**GRAPH, "lowering": "eager", "gate": "host"}
    expected: Outcome = generate(subject, compiled(subject, plain))
    assert worst(outcome.logits, expected.logits) < 1e-5
    assert [outcome.counts(scale) for scale in range(1, 6)] == [
        expected.counts(scale) for scale in range(1, 6)
    ]
    assert [outcome.arms(scale)[1] for scale in (3, 4, 5)] == ["dense", "pruned", "skipped"]
    assert outcome.controller.depth == expected.controller.depth == 2
    before = compilations(GRAPH)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert identical(generate(subject, forward).logits, outcome.logits)
        interrupt(subject, forward, monkeypatch)
        assert identical(generate(subject, forward).logits, outcome.logits)
    assert compilations(GRAPH) == before
