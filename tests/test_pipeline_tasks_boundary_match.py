"""The boundary benchmark: thinned ridges, one-to-one matching and its counts, on closed cases and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from pipeline.tasks.boundary_match import LEVELS, TOLERANCE, counts, largest_matching, neighbours, ridges, triangle


def places(*pairs: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row for row, _ in pairs], int), np.array([column for _, column in pairs], int)


def drawing(shape: tuple[int, int], *pairs: tuple[int, int]) -> np.ndarray:
    drawn = np.zeros(shape, bool)
    drawn[places(*pairs)] = True
    return drawn


def vertical(shape: tuple[int, int], column: int, value: float = 1.0, spread: float = 1.0) -> np.ndarray:
    """A ridge of probability along a column."""
    distance = np.abs(np.arange(shape[1]) - column)
    return np.tile(value * np.exp(-((distance / spread) ** 2)), (shape[0], 1)).astype(np.float32)


def test_a_pixel_within_reach_is_matched_and_one_beyond_it_is_not():
    drawn = drawing((20, 20), (10, 10))
    for at, expected in (((10, 10), True), ((10, 13), True), ((10, 14), False), ((12, 12), True), ((13, 13), False)):
        assert largest_matching(*places(at), drawn, 3.0).tolist() == [expected], at


def test_matching_is_one_to_one():
    drawn = drawing((20, 20), (10, 10))
    assert largest_matching(*places((10, 9), (10, 11)), drawn, 3.0).tolist() == [True, False]
    two = drawing((20, 20), (10, 10), (10, 12))
    assert largest_matching(*places((10, 9), (10, 11), (10, 13)), two, 3.0).tolist() == [True, True, False]


def test_an_augmenting_path_makes_room():
    # The first takes the middle, which is its nearest; the second reaches nothing else, so the first has to move.
    drawn = drawing((9, 20), (4, 5), (4, 8))
    assert largest_matching(*places((4, 7), (4, 11)), drawn, 3.0).tolist() == [True, True]


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    predicted = random.permutation(np.flatnonzero(random.random(30 * 40) < 0.12))
    return predicted // 40, predicted % 40, random.random((30, 40)) < 0.06


@pytest.mark.parametrize("seed", range(12))
def test_every_prefix_has_as_many_matches_as_any_matching_can(seed: int):
    rows, columns, drawn = random_case(seed)
    matched = largest_matching(rows, columns, drawn, 2.5)
    first, near = neighbours(rows, columns, drawn, 2.5)
    for n in {1, 3, len(rows) // 3, len(rows) // 2, len(rows)}:
        ends = first[: n + 1]
        graph = csr_array((np.ones(ends[-1]), near[: ends[-1]], ends), shape=(n, int(drawn.sum())))
        assert matched[:n].sum() == (maximum_bipartite_matching(graph, perm_type="column") >= 0).sum()


def test_neighbours_are_all_within_reach_and_the_nearest_comes_first():
    rows, columns, drawn = random_case(3)
    first, near = neighbours(rows, columns, drawn, 3.2)
    drawn_rows, drawn_columns = np.nonzero(drawn)
    for place in range(len(rows)):
        listed = near[first[place] : first[place + 1]]
        distance = np.hypot(drawn_rows - rows[place], drawn_columns - columns[place])
        assert set(listed) == set(np.flatnonzero(distance <= 3.2))
        assert np.all(np.diff(distance[listed]) >= 0)


def test_a_perfect_map_is_perfect_at_every_threshold():
    shape, drawn = (40, 60), np.zeros((1, 40, 60), bool)
    drawn[0, :, 30] = True
    found = counts(vertical(shape, 30), drawn)
    assert found["drawn"] == 40 and found["hit"].tolist() == found["found"].tolist() == [40] * len(LEVELS)
    assert found["recalled"].tolist() == [40] * len(LEVELS)


def test_probability_decides_at_which_threshold_a_line_is_there():
    shape, people = (40, 60), np.zeros((1, 40, 60), bool)
    people[0, :, 15] = True
    weak_and_wrong = np.maximum(vertical(shape, 15, 0.8), vertical(shape, 45, 0.4))
    found = counts(weak_and_wrong, people)
    for level, value, hit in zip(LEVELS, found["found"], found["hit"], strict=True):
        expected = (40 if level <= 0.8 else 0, 40 if level <= 0.4 else 0)
        assert (hit, value) == (expected[0], sum(expected)), level
    np.testing.assert_array_equal(found["recalled"], found["hit"])


def test_annotators_are_matched_one_by_one_and_precision_asks_for_any_of_them():
    shape, people = (40, 60), np.zeros((3, 40, 60), bool)
    people[0, :, 15] = people[1, :, 15] = people[1, :, 45] = True  # the third drew nothing
    found = counts(vertical(shape, 15), people)
    assert (found["found"][9], found["hit"][9], found["recalled"][9], found["drawn"]) == (40, 40, 80, 120)


def test_the_tolerance_is_of_the_diagonal():
    shape, people = (321, 481), np.zeros((1, 321, 481), bool)
    people[0, :, 240] = True
    assert 4.3 < TOLERANCE * np.hypot(*shape) < 4.4
    for off, expected in ((4, 321), (5, 0)):
        assert counts(vertical(shape, 240 + off), people)["hit"][9] == expected


def test_no_annotation_no_prediction_and_broken_maps():
    nothing = np.zeros((2, 12, 14), bool)
    quiet = counts(np.zeros((12, 14), np.float32), nothing)
    assert quiet["drawn"] == 0 and not quiet["found"].any() and not quiet["hit"].any()
    people = nothing.copy()
    people[:, 3] = True
    broken = counts(np.full((12, 14), np.nan, np.float32), people)
    assert (broken["found"] == 12 * 14).all() and not broken["hit"].any() and broken["drawn"] == 28
    assert counts(vertical((12, 14), 5), nothing)["hit"].sum() == 0


def test_ridges_are_thin_and_lie_on_the_ridge():
    rows, columns = np.mgrid[0:80, 0:80]
    ring = np.exp(-(((np.hypot(rows - 40, columns - 40) - 25) / 2.5) ** 2)).astype(np.float32)
    lines = ridges(ring)
    distance = np.abs(np.hypot(rows - 40, columns - 40) - 25)[lines]
    on = np.count_nonzero(distance < 1)
    assert 130 < on < 170 and on / lines.sum() > 0.85  # 2 pi 25 = 157; a few stand beside it, as edgesNms leaves some
    assert ring[lines][distance > 1].max(initial=0) < 0.3
    assert not ridges(np.full((30, 30), 0.01, np.float32)).any()


def test_triangle_keeps_a_constant_and_the_mass():
    np.testing.assert_allclose(triangle(np.full((9, 11), 0.3, np.float32), 4), 0.3, rtol=1e-6)
    dot = np.zeros((21, 21), np.float32)
    dot[10, 10] = 1
    smooth = triangle(dot, 2)
    np.testing.assert_allclose(smooth[10, 8:13], np.array([1, 2, 3, 2, 1]) / 27, rtol=1e-5)
    assert smooth.sum() == pytest.approx(1, abs=1e-5)
