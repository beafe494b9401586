"""PSNR and SSIM: closed forms, golden values, and agreement with scikit-image."""

import math

import numpy as np
import pytest

from pipeline.tasks.image_quality import luma, psnr, ssim


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_luma_of_the_corners_of_the_colour_cube() -> None:
    """BT.601: black 16, white 235, and the three primaries."""
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(luma(colours)[0], [16, 235, 81.481, 144.553, 40.966])
    gray = noise(0, 4, 4, 1)
    assert np.array_equal(luma(gray), gray[..., 0])


def test_psnr_in_closed_form() -> None:
    black = np.zeros((8, 8), np.uint8)
    assert psnr(black, black + 255) == 0.0
    assert psnr(black, black + 1) == pytest.approx(20 * math.log10(255))
    assert psnr(black, black) == 100.0
    half = black.copy()
    half[:4] = 10
    assert psnr(black, half) == pytest.approx(10 * math.log10(255**2 / 50))


def test_ssim_in_closed_form() -> None:
    """Of constants a, b only the luminance term is left; of a picture and its negative structure turns round."""
    a, b = np.full((16, 16), 100.0), np.full((16, 16), 120.0)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))
    picture = noise(1, 32, 32).astype(float)
    assert ssim(picture, picture) == pytest.approx(1.0)
    assert -1 <= ssim(picture, 255 - picture) < -0.9
    assert ssim(picture, a[0, 0] + 0 * picture) == pytest.approx(0, abs=0.02)


def test_golden_values() -> None:
    """Seen once here, and the same from scikit-image 0.26."""
    a, b = noise(2, 40, 50), noise(3, 40, 50)
    assert psnr(a, b) == pytest.approx(7.692317, abs=1e-6)
    assert ssim(a, b) == pytest.approx(-0.002287, abs=1e-6)


@pytest.mark.parametrize("size", [(11, 11), (40, 33), (120, 80)])
def test_scikit_image_agrees(size: tuple[int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = noise(4, *size)
    b = np.clip(a.astype(float) + np.random.default_rng(5).normal(0, 12, size), 0, 255)
    x, y = a.astype(float), b
    assert psnr(x, y) == pytest.approx(metrics.peak_signal_noise_ratio(x, y, data_range=255), rel=1e-12)
    theirs = metrics.structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(x, y) == pytest.approx(theirs, rel=1e-9)


def test_scikit_image_has_the_same_luma() -> None:
    color = pytest.importorskip("skimage.color")
    picture = noise(6, 12, 12, 3)
    np.testing.assert_allclose(luma(picture), color.rgb2ycbcr(picture)[..., 0], atol=1e-9)
