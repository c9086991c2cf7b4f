import math
from dataclasses import replace

import pytest
import torch

from toprovar_fx.scenes import captions_from_keys, image_keys, render, sample_scenes, scenes_from_keys
from toprovar_fx.scenes.backgrounds import background
from toprovar_fx.scenes.palette import BACKGROUND_LIMIT, OBJECT_COLOURS
from toprovar_fx.scenes.scene import IMAGE_SIZE
from toprovar_fx.scenes.vocab import BACKGROUNDS, COLOURS, SHAPES


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(12, device="cpu", seed=8)


@pytest.fixture(scope="module")
def images(scenes):
    return render(scenes)


def test_images_have_the_promised_layout(images):
    assert images.shape == (12, 3, IMAGE_SIZE, IMAGE_SIZE) and images.dtype == torch.float32
    assert images.is_contiguous()
    assert images.min() >= -1 and images.max() <= 1


def test_an_image_does_not_depend_on_the_batch(scenes, images):
    assert torch.equal(render(scenes[3:5]), images[3:5])


def test_objects_have_their_colour_at_their_centre(scenes, images):
    hollow = torch.tensor([SHAPES.index("ring"), SHAPES.index("crescent")])
    present = torch.arange(4) < scenes.n[:, None]
    plain = present & (scenes.texture == 0) & ~torch.isin(scenes.shape, hollow)
    assert plain.sum() >= 5
    for i, slot in plain.nonzero().tolist():
        seen = images[i, :, int(scenes.cy[i, slot]), int(scenes.cx[i, slot])]
        named = torch.tensor(OBJECT_COLOURS)[scenes.colour[i, slot]]
        torch.testing.assert_close((seen + 1) / 2, named, atol=0.05, rtol=0)


def test_edges_are_antialiased():
    """The outline of a white circle on dark water: pixels between the two tones, all around."""
    many = sample_scenes(4000, device="cpu", seed=0)
    circle = (many.n == 1) & (many.shape[:, 0] == SHAPES.index("circle")) & (many.texture[:, 0] == 0)
    scene = many[(circle & (many.colour[:, 0] == COLOURS.index("white"))).nonzero()[:1, 0]]
    water = torch.full_like(scene.background, BACKGROUNDS.index("water"))
    darkest = (render(replace(scene, background=water))[0].amin(dim=0) + 1) / 2
    radius = 0.9 * float(scene.radius[0, 0])
    assert (darkest > 0.7).sum().item() == pytest.approx(math.pi * radius**2, rel=0.05)
    assert ((darkest > 0.4) & (darkest < 0.7)).sum() > radius


def test_backgrounds_are_dark_muted_and_fine():
    family = torch.arange(len(BACKGROUNDS)).repeat_interleave(4)
    axis = torch.arange(IMAGE_SIZE) + 0.5
    image = background(family, image_keys(0, len(family), "cpu"), axis[None, None, :], axis[None, :, None])
    maximum, minimum = image.amax(dim=3), image.amin(dim=3)
    assert maximum.max() <= BACKGROUND_LIMIT
    assert ((maximum - minimum) / maximum).max() < 0.6
    fine = (
        image - torch.nn.functional.avg_pool2d(image.permute(0, 3, 1, 2), 5, 1, 2).permute(0, 2, 3, 1)
    ).std(dim=(1, 2, 3))
    assert fine.min() > 0.01, "late scales need something to draw"


def test_backgrounds_of_different_scenes_differ():
    axis = torch.arange(IMAGE_SIZE) + 0.5
    family = torch.zeros(2, dtype=torch.int64)
    a, b = background(family, image_keys(0, 2, "cpu"), axis[None, None, :], axis[None, :, None])
    assert (a - b).abs().mean() > 0.02


def test_the_whole_data_pipeline_is_one_graph(fresh_dynamo):
    """A trainer compiles it; any data-dependent Python would break the graph here."""

    def draw(keys, caption_keys):
        scenes = scenes_from_keys(keys)
        return (render(scenes), *captions_from_keys(scenes, caption_keys))

    keys, caption_keys = image_keys(1, 3, "cpu"), image_keys(2, 3, "cpu")
    compiled = torch.compile(draw, backend="eager", fullgraph=True)
    for ours, expected in zip(compiled(keys, caption_keys), draw(keys, caption_keys), strict=True):
        assert torch.equal(ours, expected)
