"""MATLAB's imresize in numpy: its properties, Set5's published inputs byte for byte, and the blur."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.bicubic import blur, modcrop, resize, shrink


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("scale", [0.25, 0.5, 1 / 3, 1.0, 2.0, 4.0])
@given(level=st.integers(0, 255), height=st.integers(12, 40), width=st.integers(12, 40))
@settings(max_examples=15, deadline=None)
def test_a_constant_picture_stays_constant(scale: float, level: int, height: int, width: int) -> None:
    found = resize(np.full((height, width, 1), level, np.uint8), scale)
    assert (found == level).all()
    assert found.shape == (int(np.ceil(height * scale)), int(np.ceil(width * scale)), 1)


def test_weights_of_a_quarter_in_closed_form() -> None:
    """An impulse: Keys's kernel (a = -1/2) stretched by 4, sampled at odd eighths; its samples sum to 4."""
    line = np.zeros((4, 64, 1), np.uint8)
    line[:, 30] = 255
    found = resize(line, 0.25)[0, :, 0]
    centres = 4 * np.arange(16) + 1.5

    def keys(x: np.ndarray) -> np.ndarray:
        x = abs(x)
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x <= 2, far, 0))

    expected = 255 * keys((30 - centres) / 4) / 4
    assert np.array_equal(found, np.floor(np.clip(expected, 0, 255) + 0.5))


def test_a_ramp_is_enlarged_to_a_ramp_away_from_the_borders() -> None:
    ramp = np.broadcast_to(np.arange(0, 200, 8, dtype=np.uint8)[:, None, None], (25, 4, 1)).copy()
    found = resize(ramp, 4)[12:-12, 0, 0].astype(int)
    assert set(np.diff(found)) == {2}


def test_mirrored_pictures_give_mirrored_results() -> None:
    picture = noise(32, 48)
    for scale in (0.25, 2.0):
        assert np.array_equal(resize(picture[::-1, ::-1], scale), resize(picture, scale)[::-1, ::-1])


def test_modcrop_and_shrink() -> None:
    picture = modcrop(noise(323, 482), 4)
    assert picture.shape == (320, 480, 3) and shrink(picture, 4).shape == (80, 120, 3)
    assert np.array_equal(shrink(picture, 4), resize(picture, 1 / 4))
    assert not np.array_equal(shrink(picture, 4, sigma=1.2), shrink(picture, 4))


def test_blur_is_a_normalised_gaussian_with_mirrored_borders() -> None:
    assert blur(noise(20, 20), 0) is not None and np.array_equal(blur(noise(20, 20), 0), noise(20, 20))
    constant = np.full((9, 9, 3), 77, np.uint8)
    assert np.array_equal(blur(constant, 2.5), constant)
    impulse = np.zeros((41, 41, 1), np.uint8)
    impulse[20, 20] = 255
    steps = np.arange(-3, 4)
    line = np.exp(-0.5 * steps**2.0)
    expected = 255 * np.outer(line, line) / line.sum() ** 2
    assert np.array_equal(blur(impulse, 1.0)[17:24, 17:24, 0], np.floor(expected + 0.5))


@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_scipy_gives_the_same_blur(scale: float) -> None:
    filters = pytest.importorskip("scipy.ndimage")
    picture = noise(40, 40, channels=1)
    sigma = 4 * scale
    ours = blur(picture, sigma)[..., 0].astype(int)
    theirs = filters.gaussian_filter(picture[..., 0].astype(float), sigma, mode="reflect", truncate=3.0)
    assert abs(ours - theirs).max() <= 0.51


@pytest.mark.real
def test_set5s_published_inputs_byte_for_byte() -> None:
    from PIL import Image

    folder = Path(os.environ.get("EDGESTILL_REAL_DATA", "")) / "super_resolution" / "Set5"
    if not folder.is_dir():
        pytest.skip("EDGESTILL_REAL_DATA names no folder with the real data sets")
    found = sorted((folder / "HR").glob("*.png"))
    assert len(found) == 5
    for path in found:
        published = np.asarray(Image.open(folder / "LR_bicubic" / "X4" / f"{path.stem}x4.png").convert("RGB"))
        ours = shrink(modcrop(np.asarray(Image.open(path).convert("RGB")), 4), 4)
        assert np.array_equal(ours, published), path.stem
