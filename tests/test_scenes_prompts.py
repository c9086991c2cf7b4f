from collections import Counter

import pytest

from toprovar_fx.scenes import HELD_OUT, encode_prompt, eval_prompts, scenes_for_prompts
from toprovar_fx.scenes.prompts import CATEGORIES
from toprovar_fx.scenes.vocab import COLOURS, SHAPES


def held_pairs(prompt):
    return {(r.colour, r.shape) for r in prompt.requirements} & set(HELD_OUT)


def test_categories_are_balanced_in_every_prefix():
    assert Counter(p.category for p in eval_prompts(1200)) == dict.fromkeys(CATEGORIES, 200)
    assert Counter(p.category for p in eval_prompts(12)) == dict.fromkeys(CATEGORIES, 2)
    assert eval_prompts(1200)[:30] == eval_prompts(30)


def test_a_seed_fixes_the_prompts():
    assert eval_prompts(60, seed=1) == eval_prompts(60, seed=1) != eval_prompts(60, seed=2)


@pytest.mark.parametrize("held_out", [False, True])
def test_every_prompt_is_readable_and_says_its_requirements(held_out):
    for prompt in eval_prompts(600, held_out=held_out):
        encode_prompt(prompt.text)
        for requirement in prompt.requirements:
            assert requirement.shape in prompt.text or requirement.shape + "es" in prompt.text
            assert requirement.colour is None or requirement.colour in prompt.text
        assert (prompt.relation is not None) == (prompt.category == "position")
        assert prompt.relation is None or prompt.relation in prompt.text
        assert len({r.shape for r in prompt.requirements}) == len(prompt.requirements)


def test_held_out_prompts():
    assert all(held_pairs(p) for p in eval_prompts(600, held_out=True))
    assert not any(held_pairs(p) for p in eval_prompts(600))


def test_ground_truth_scenes_fulfil_their_prompts():
    prompts = eval_prompts(600) + eval_prompts(600, held_out=True)
    scenes = scenes_for_prompts(prompts, seed=4)
    for i, prompt in enumerate(prompts):
        n = int(scenes.n[i])
        shown = [(SHAPES[s], COLOURS[c]) for s, c in zip(scenes.shape[i], scenes.colour[i], strict=True)][:n]
        assert n == sum(r.count for r in prompt.requirements)
        for requirement in prompt.requirements:
            of_shape = [colour for shape, colour in shown if shape == requirement.shape]
            assert len(of_shape) == requirement.count
            assert requirement.colour is None or set(of_shape) == {requirement.colour}
        if prompt.relation is not None:
            first, second = (next(k for k in range(n) if shown[k][0] == r.shape) for r in prompt.requirements)
            dx = float(scenes.cx[i, second] - scenes.cx[i, first])
            dy = float(scenes.cy[i, second] - scenes.cy[i, first])
            along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[prompt.relation]
            assert along > 100
