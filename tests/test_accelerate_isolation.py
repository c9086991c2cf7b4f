"""Accelerated models one after another, side by side, interrupted, and when Dynamo cannot take them."""

from __future__ import annotations

import threading

import pytest
import torch

from toprovar_fx import accelerate, current_generation
from toprovar_fx.adapters.run import active_run

from .models.like_upstream import Case, same, traced_once

LOSSLESS = {"preset": "lossless", "lowering": "eager"}
RANKED = {
    "preset": "criterion",
    "lowering": "eager",
    "keep": {2: 0.7, 3: 0.6, 4: {0: 0.3, 1: 0.0, 2: 0.5}},
    "entropy_source": "previous_scale",
    "protected_layers_first": 0,
    "protected_layers_last": 0,
}
KINDS = ["var", "infinity"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("var", LOSSLESS),
        ("infinity", RANKED),
        pytest.param("var", RANKED, marks=pytest.mark.nightly),
        pytest.param("infinity", LOSSLESS, marks=pytest.mark.nightly),
    ],
)
def test_nothing_is_compiled_twice(kind, options):
    """A second image, a batch size that was seen, other text lengths, and after an exception."""
    case = Case(kind)
    accelerate(case.model, options)
    first = case.generate(seed=1)
    case.generate(images=2, seed=1)
    with torch.compiler.set_stance("fail_on_recompile"):
        case.generate(seed=2)
        case.generate(images=2, seed=2)
        case.generate(images=3, seed=5)
        with pytest.raises(KeyboardInterrupt):
            case.generate(seed=3, fail_at=3)
        assert same(case.generate(seed=1), first)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_half_way_leaves_nothing_behind(kind):
    case = traced_once(kind)
    handle = case.accelerate(RANKED)
    whole = case.generate()
    report = handle.report
    with pytest.raises(KeyboardInterrupt):
        case.generate(fail_at=4)
    assert handle.report is report
    assert current_generation() is None and active_run(case.model) is None
    assert not any(attention.caching for attention in case.attentions())
    assert same(case.generate(), whole)


def test_two_models_in_two_threads_do_not_see_each_other():
    cases = [traced_once(kind) for kind in KINDS]
    for case in cases:
        case.accelerate(RANKED)
    alone = [[case.generate(images=2, seed=seed) for seed in range(3)] for case in cases]
    turn, found = threading.Barrier(2, timeout=120), [[], []]

    def work(index: int) -> None:
        case = cases[index]
        step = case.blocks()[0].forward
        for seed in range(3):
            # Both wait for each other before every scale, so the generations interleave.
            vars(case.blocks()[0])["forward"] = lambda *args, **kwargs: (turn.wait(), step(*args, **kwargs))[
                1
            ]
            found[index].append(case.generate(images=2, seed=seed))
        vars(case.blocks()[0])["forward"] = step

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for before, after in zip(alone, found, strict=True):
        assert len(after) == 3 and all(map(same, before, after))


def test_two_models_of_one_class_keep_their_own_weights_and_graphs():
    cases = [Case("var", seed=seed, depth=2) for seed in (1, 2)]
    dense = [case.generate() for case in cases]
    handles = [accelerate(case.model, LOSSLESS) for case in cases]
    assert same(cases[0].generate(), dense[0])
    with torch.compiler.set_stance("default"):
        assert same(cases[1].generate(), dense[1])
    with torch.compiler.set_stance("fail_on_recompile"):
        assert [same(case.generate(), want) for case, want in zip(cases, dense, strict=True)] == [True, True]
    assert handles[0].report is not handles[1].report


def breaking(case: Case) -> None:
    """Give the model a feed-forward that Dynamo cannot trace."""
    case.blocks()[1].up.register_forward_hook(lambda *_: torch._dynamo.graph_break())


def test_what_cannot_be_traced_runs_as_written_with_a_warning():
    case = Case("var")
    breaking(case)
    dense = case.generate()
    handle = accelerate(case.model, LOSSLESS)
    with pytest.warns(
        RuntimeWarning, match="the scale step of LikeVAR could not be compiled and runs as written"
    ):
        found = case.generate()
    assert same(found, dense)
    assert same(case.generate(images=2), Case("var").generate(images=2))
    assert handle.report is None


def test_what_cannot_be_traced_can_be_an_error():
    case = Case("var")
    breaking(case)
    accelerate(case.model, {**LOSSLESS, "on_error": "raise"})
    with pytest.raises(torch._dynamo.exc.Unsupported):
        case.generate()


def test_new_weights_are_used():
    case, other = (Case("infinity", seed=seed, depth=2) for seed in (1, 2))
    accelerate(case.model, LOSSLESS)
    case.generate()
    case.model.load_state_dict(other.model.state_dict())
    assert same(case.generate(), other.generate())


@pytest.mark.parametrize("options", [LOSSLESS, {**RANKED, "keep": {-1: 1.0}}])
def test_a_changed_resolution_and_batch(options):
    case = Case("infinity", depth=2)
    tall = [(1, 1, 1), (1, 2, 2), (1, 3, 2), (1, 5, 4)]
    tables = case.model.rope2d_freqs_grid
    tables[str(tuple(tall))] = next(iter(tables.values()))
    settings = [{}, {"scale_schedule": tall}, {"scale_schedule": tall, "images": 2}, {}]
    dense = [case.generate(**setting) for setting in settings]
    accelerate(case.model, options)
    for stance in ("default", "fail_on_recompile"):
        with torch.compiler.set_stance(stance):
            for setting, want in zip(settings, dense, strict=True):
                assert same(case.generate(**setting), want)
