import dataclasses

import pytest
import torch

from toprovar_fx.errors import SeedError
from toprovar_fx.scenes import HELD_OUT, sample_scenes
from toprovar_fx.scenes import scene as sc
from toprovar_fx.scenes.shapes import SHAPE_FUNCTIONS
from toprovar_fx.scenes.vocab import COLOURS, SHAPES

BATCH = 4096


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(BATCH, device="cpu", seed=3)


def equal(a, b):
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def pairs(scenes):
    """The (colour, shape) pairs of every scene, a set each."""
    rows = zip(scenes.n.tolist(), scenes.colour.tolist(), scenes.shape.tolist(), strict=True)
    return [{(COLOURS[c], SHAPES[s]) for c, s in zip(cs[:n], ss[:n], strict=True)} for n, cs, ss in rows]


def test_a_seed_fixes_the_scenes(scenes):
    assert equal(scenes, sample_scenes(BATCH, device="cpu", seed=3))
    assert not torch.equal(scenes.cx, sample_scenes(BATCH, device="cpu", seed=4).cx)


def test_a_scene_does_not_depend_on_the_batch(scenes):
    assert equal(scenes[:5], sample_scenes(5, device="cpu", seed=3))


@pytest.mark.gpu
def test_scenes_are_equal_on_every_device(scenes):
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    discrete = ("n", "kind", "layout", "shape", "colour", "texture", "background", "noise_key")
    other = sample_scenes(BATCH, device="cuda", seed=3).to("cpu")
    assert all(torch.equal(getattr(scenes, name), getattr(other, name)) for name in discrete)
    torch.testing.assert_close(scenes.cx, other.cx)


def test_both_halves_of_the_seed_count():
    a, b = (sample_scenes(64, device="cpu", seed=seed) for seed in (5, 5 + 2**40))
    assert not torch.equal(a.cx, b.cx)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(SeedError, match="out of range"):
        sample_scenes(1, device="cpu", seed=seed)


def test_the_mixture_of_kinds(scenes):
    share = torch.bincount(scenes.kind, minlength=4) / BATCH
    torch.testing.assert_close(share, torch.tensor([0.20, 0.45, 0.25, 0.10]), atol=0.03, rtol=0)
    assert scenes.n.min() == 1 and scenes.n.max() == 4
    for kind, numbers in ((sc.SINGLE, {1}), (sc.TWO, {2}), (sc.COUNT, {2, 3, 4}), (sc.MIXED, {3, 4})):
        assert set(scenes.n[scenes.kind == kind].tolist()) == numbers


def test_held_out_pairs_never_occur_in_training_scenes(scenes):
    assert not set.union(*pairs(scenes)) & set(HELD_OUT)


def test_every_other_pair_occurs(scenes):
    assert len(set.union(*pairs(scenes))) == len(COLOURS) * len(SHAPES) - len(HELD_OUT)


def test_held_out_scenes_hold_at_least_one_such_pair():
    found = pairs(sample_scenes(BATCH, device="cpu", seed=3, held_out=True))
    assert all(scene & set(HELD_OUT) for scene in found)
    assert set.union(*found) >= set(HELD_OUT)


@pytest.mark.parametrize("held_out", [False, True])
def test_groups_are_equal_and_other_objects_have_different_shapes(held_out):
    scenes = sample_scenes(BATCH, device="cpu", seed=9, held_out=held_out)
    for n, kind, shape in zip(scenes.n.tolist(), scenes.kind.tolist(), scenes.shape.tolist(), strict=True):
        assert len(set(shape[:n])) == (1 if kind == sc.COUNT else n)
    counted = scenes[scenes.kind == sc.COUNT]
    assert (counted.colour == counted.colour[:, :1]).all()
    assert (counted.texture == counted.texture[:, :1]).all()


def test_shapes_stay_within_their_nominal_extent():
    axis = torch.linspace(-1.5, 1.5, 601)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    for angle in (-0.14, 0.0, 0.14):
        cosine, sine = torch.tensor(angle).cos(), torch.tensor(angle).sin()
        for function in SHAPE_FUNCTIONS:
            inside = function(cosine * u + sine * v, cosine * v - sine * u) < 0
            assert inside.any()
            assert max(u[inside].abs().max(), v[inside].abs().max()) <= 1.1, function.__name__


def test_objects_never_touch_each_other_or_the_border(scenes):
    slot = torch.arange(4)
    present = slot < scenes.n[:, None]
    reach = 1.1 * scenes.radius
    for centre in (scenes.cx, scenes.cy):
        assert ((centre - reach)[present] >= 0).all()
        assert ((centre + reach)[present] <= sc.IMAGE_SIZE).all()
    gap_x = (scenes.cx[:, :, None] - scenes.cx[:, None]).abs() - reach[:, :, None] - reach[:, None]
    gap_y = (scenes.cy[:, :, None] - scenes.cy[:, None]).abs() - reach[:, :, None] - reach[:, None]
    both = present[:, :, None] & present[:, None] & (slot[:, None] != slot)
    assert (torch.maximum(gap_x, gap_y)[both] > 2).all()


def test_relations_hold_with_a_clear_margin(scenes):
    dx = scenes.cx[:, 1] - scenes.cx[:, 0]
    dy = scenes.cy[:, 1] - scenes.cy[:, 0]
    beside, above = scenes.relation == 0, scenes.relation == 1
    assert beside.any() and above.any()
    assert (dx[beside] > 100).all() and (dy[beside].abs() < 20).all()
    assert (dy[above] > 100).all() and (dx[above].abs() < 20).all()
    assert (scenes.relation[scenes.kind != sc.TWO] == -1).all()
