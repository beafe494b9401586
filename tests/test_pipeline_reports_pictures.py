"""PNG files by zlib alone, and the pieces of images that a report shows."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.drawn import picture
from pipeline.reports.pictures import SIDE, coloured, figure, most_detail
from pipeline.reports.png import encode


def opened(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (40, 50, 3), (40, 50, 1), (3, 200)])
def test_a_png_holds_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    wanted = pixels[..., 0] if shape[2:] == (1,) else pixels
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(pixels)))), wanted)
    drawn, _ = picture(0, 120, 150)
    assert encode(drawn) == encode(drawn) and len(encode(drawn)) < 0.9 * drawn.size


def test_a_figure_is_the_piece_with_most_detail_the_same_for_all() -> None:
    target = np.full((400, 320, 3), 90, np.uint8)
    target[208:248:2, 200:240] = 250
    image = target[::4, ::4]
    answers = {"exact": target, "dark": target - 40, "coarse": image.repeat(4, 0).repeat(4, 1)}
    found = figure(image, target, answers)
    top, left, height, width = found["box"]
    assert (height, width) == (SIDE, SIDE) and top % 4 == left % 4 == 0 and found["scale"] == 4
    assert top <= 208 and top + height >= 248 and left <= 200 and left + width >= 240
    np.testing.assert_array_equal(opened(found["target"]), target[top : top + SIDE, left : left + SIDE])
    assert opened(found["input"]).shape == (SIDE // 4, SIDE // 4, 3)
    assert [answer["mean_error"] for answer in found["answers"].values()][:2] == [0.0, 40.0]
    assert opened(found["answers"]["exact"]["error"]).max() <= 4, "no error is black"
    assert sum(len(text) for text in (found["input"], found["target"])) < 200_000


def test_a_small_picture_is_shown_whole_and_a_tiny_error_not_as_a_large_one() -> None:
    target = picture(1, 30, 22)[0]
    assert most_detail(target, 2) == (0, 0, 30, 22)
    found = figure(target, target, {"near": np.clip(target.astype(int) + 1, 0, 255).astype(np.uint8)})
    assert found["brightest"] == 8.0 and opened(found["answers"]["near"]["error"]).astype(int).sum(2).max() < 300


def test_light_grows_with_the_error() -> None:
    shades = coloured(np.linspace(0, 1, 64)[None])[0].astype(int) @ [299, 587, 114]
    assert (np.diff(shades) > 0).all() and coloured(np.array([[9.0, -1.0]])).tolist() == [[[252, 255, 164], [0, 0, 4]]]
