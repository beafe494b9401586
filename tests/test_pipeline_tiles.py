"""Large images in overlapping tiles: what a local function gives for the whole, at any size, with bounded memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline import tiles
from pipeline.tiles import share, starts, tiled

RANDOM = np.random.default_rng(0)


def blurred(batch: np.ndarray, scale: int = 1) -> np.ndarray:
    """A 3x3 mean with zeros beyond the edge, as a convolution pads, of tiles (N, h, w, C), each pixel `scale` times."""
    wide = np.pad(batch.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = batch.shape[1:3]
    mean = np.mean([wide[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)
    return mean.repeat(scale, 1).repeat(scale, 2).transpose(0, 3, 1, 2).astype(np.float32)


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (17, 40), (100, 33), (61, 62)])
def test_what_looks_a_quarter_of_the_overlap_far_is_answered_as_the_whole_image(
    size: tuple[int, int], scale: int
) -> None:
    image = RANDOM.integers(0, 256, (*size, 2), dtype=np.uint8)
    got = tiled(lambda batch: blurred(batch, scale), image, tile=(16, 16), overlap=4)
    wanted = blurred(image[None], scale)[0].transpose(1, 2, 0)
    assert got.shape == (size[0] * scale, size[1] * scale, 2) and got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, atol=1e-3)


@pytest.mark.parametrize("size", [(5, 40), (1, 1), (15, 16)])
def test_an_image_smaller_than_a_tile_is_reflected_and_its_answer_cut(size: tuple[int, int]) -> None:
    image = RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8)
    seen: list[np.ndarray] = []

    def same(batch: np.ndarray) -> np.ndarray:
        seen.append(batch)
        return batch.transpose(0, 3, 1, 2).astype(np.float32)

    np.testing.assert_allclose(tiled(same, image, tile=(16, 16), overlap=8), image, atol=1e-3)
    assert all(part.shape[1:] == (16, 16, 3) for part in seen)
    if size == (15, 16):
        np.testing.assert_array_equal(seen[0][0, 15], image[13])


@pytest.mark.parametrize("length", range(16, 90, 7))
@pytest.mark.parametrize("overlap", [0, 1, 4, 8, 30])
def test_the_shares_of_all_tiles_sum_to_one_and_neighbours_overlap(length: int, overlap: int) -> None:
    places = starts(length, 16, overlap)
    assert places[0] == 0 and places[-1] == length - 16
    assert all(b - a <= 16 - min(overlap, 8) for a, b in itertools.pairwise(places))
    total = np.zeros(length * 2)
    for index, place in enumerate(places):
        total[2 * place : 2 * place + 32] += share(places, index, 16, 2)
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_few_tiles_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_PIXELS", 3 * 16 * 16)
    seen: list[int] = []

    def same(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return batch.transpose(0, 3, 1, 2).astype(np.float32)

    image = RANDOM.integers(0, 256, (200, 120, 3), dtype=np.uint8)
    np.testing.assert_allclose(tiled(same, image, tile=(16, 16), overlap=4), image, atol=1e-3)
    assert max(seen) == 3 and sum(seen) > 100


def test_a_value_that_is_not_finite_stays_where_its_tile_has_a_share() -> None:
    image = np.zeros((16, 40, 1), np.uint8)
    image[8, 2] = 255

    def poisoned(batch: np.ndarray) -> np.ndarray:
        answer = batch.transpose(0, 3, 1, 2).astype(np.float32)
        return np.where(answer == 255, np.nan, answer)

    got = tiled(poisoned, image, tile=(16, 16), overlap=8)
    assert np.isnan(got[8, 2, 0]) and np.isnan(got).sum() == 1


def test_an_answer_of_another_size_is_refused() -> None:
    def odd(batch: np.ndarray) -> np.ndarray:
        return np.zeros((len(batch), 1, 24, 24), np.float32)

    with pytest.raises(ValueError, match=r"tiles of 16x16 are answered with shape \[1, 24, 24\]; expected"):
        tiled(odd, np.zeros((16, 16, 1), np.uint8), tile=(16, 16), overlap=4)
