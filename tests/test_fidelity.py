import math

import numpy as np
import pytest
import torch

from toprovar_fx.errors import ToProVARError
from toprovar_fx.evaluation import frechet_distance, psnr, ssim


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(3, 3, 8, 8, generator=generator), (48, 40), mode="bicubic"
    )
    a = (smooth.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    noise = torch.randn(a.shape, generator=generator) * torch.tensor([2.0, 8.0, 30.0])[:, None, None, None]
    return a, (a + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_of_a_known_error():
    a = torch.full((1, 16, 16, 3), 100, dtype=torch.uint8)
    assert psnr(a, a + 5).item() == pytest.approx(10 * math.log10(255**2 / 25))
    assert psnr(a, a).item() == math.inf


def test_against_scikit_image(pair):
    metrics = pytest.importorskip("skimage.metrics")
    a, b = pair
    for i, (x, y) in enumerate(zip(a.numpy(), b.numpy(), strict=True)):
        assert psnr(a, b)[i].item() == pytest.approx(metrics.peak_signal_noise_ratio(x, y, data_range=255))
        expected = metrics.structural_similarity(
            x,
            y,
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ssim(a, b)[i].item() == pytest.approx(expected, abs=1e-6)


def test_ssim_falls_with_noise_and_is_one_for_equal_images(pair):
    a, b = pair
    assert ssim(a, a).tolist() == pytest.approx([1, 1, 1])
    light, middle, heavy = ssim(a, b).tolist()
    assert light > middle > heavy


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_images_are_refused(metric):
    a = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(ToProVARError, match=r"expected torch\.uint8"):
        metric(a.float(), a)
    with pytest.raises(ToProVARError, match="differ in shape"):
        metric(a, a[:, :12])


def test_ssim_needs_a_window():
    a = torch.zeros(1, 8, 16, 3, dtype=torch.uint8)
    with pytest.raises(ToProVARError, match="at least 11"):
        ssim(a, a)


def test_frechet_distance_against_a_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    a = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 0.5
    ca, cb = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected)


def test_frechet_distance_of_a_set_to_itself_and_to_a_shift():
    a = torch.randn(50, 80, generator=torch.Generator().manual_seed(1))  # fewer rows than columns: singular
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(a, a + 2) == pytest.approx(80 * 4, rel=1e-4)
    assert frechet_distance(a[:, :1], a[:, :1] + 3) == pytest.approx(9)


@pytest.mark.parametrize("shapes", [((5, 3), (5, 4)), ((1, 3), (5, 3)), ((5,), (5, 3))])
def test_bad_features_are_refused(shapes):
    with pytest.raises(ToProVARError, match="expected"):
        frechet_distance(*(torch.zeros(shape) for shape in shapes))
