"""Thinning, outlines of label maps and wide lines: closed cases, and BSDS500's own boundaries where the data is."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.thinning import outlines, thin, widen


def drawing(*rows: str) -> np.ndarray:
    return np.array([[mark == "#" for mark in row] for row in rows])


def test_a_bar_becomes_its_middle_line():
    bar = np.zeros((9, 20), bool)
    bar[3:6, 2:18] = True
    thinned = thin(bar)
    assert thinned.sum(axis=0).max() == 1 and thinned[4, 4:16].all() and not thinned[[0, 1, 2, 6, 7, 8]].any()


def test_what_is_thin_stays_and_a_ring_stays_closed():
    line = drawing("......", ".####.", "......", "..#...", "...#..")
    np.testing.assert_array_equal(thin(line), line)
    ring = np.zeros((15, 15), bool)
    ring[2:13, 2:13] = True
    ring[5:10, 5:10] = False
    thinned = thin(ring)
    assert thinned.sum() < ring.sum() / 2
    inside = np.zeros_like(ring)
    inside[7, 7] = True
    for _ in range(15):  # a flood from the middle must not get out
        inside = widen(inside, 3) & ~widen_cross(thinned, inside)
    assert not inside[0].any() and not inside[:, 0].any()


def widen_cross(walls: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Walls as a flood of 3x3 steps sees them: a diagonal line lets it through, so it is drawn two pixels wide."""
    return walls | np.pad(walls, ((0, 1), (0, 0)))[1:]


def test_thinning_twice_is_thinning_once_and_an_empty_mask_stays_empty():
    random = np.random.default_rng(0)
    mask = widen(random.random((60, 70)) > 0.99, 5)
    once = thin(mask)
    np.testing.assert_array_equal(thin(once), once)
    assert not thin(np.zeros((4, 4), bool)).any()
    assert not (once & ~mask).any()


def test_outlines_stand_left_and_above_of_where_labels_change():
    labels = np.zeros((5, 6), int)
    labels[:, 3:] = 1
    np.testing.assert_array_equal(outlines(labels), np.tile(np.arange(6) == 2, (5, 1)))
    assert not outlines(np.full((5, 6), 7)).any()


def test_wide_lines_reach_alike_to_all_sides():
    dot = np.zeros((9, 9), bool)
    dot[4, 4] = dot[0, 8] = True
    wide = widen(dot, 3)
    assert wide[3:6, 3:6].all() and wide[:2, 7:].all() and wide.sum() == 13
    np.testing.assert_array_equal(widen(dot, 1), dot)


@pytest.mark.real
def test_the_published_boundaries_come_out_of_the_label_maps():
    root = Path(os.environ["EDGESTILL_REAL_DATA"])
    with zipfile.ZipFile(root / "bsds500.zip") as means, zipfile.ZipFile(root / "bsds500_segmentations.zip") as maps:
        for name in ("test/100007", "test/101084", "train/100075", "val/97033"):
            mean = np.array(Image.open(io.BytesIO(means.read(f"boundary_mean/{name}.png"))))
            labels = np.array(Image.open(io.BytesIO(maps.read(f"segmentations/{name}.png"))))
            people = [outlines(part) for part in labels.reshape(-1, *mean.shape)]
            np.testing.assert_array_equal(np.rint(255 * np.mean(people, axis=0)), mean)
