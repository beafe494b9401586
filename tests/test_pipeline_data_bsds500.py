"""BSDS500 and the drawn pictures as sources of edge maps: targets, splits, patches, and what changes them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from bsds_tree import PEOPLE, drawn, layout

from pipeline.data import open_source, stamp
from pipeline.data.bsds500 import MEAN, target_of
from pipeline.data.drawn_edges import COUNTS, pair
from pipeline.errors import RecipeError
from pipeline.recipe import Data
from pipeline.thinning import widen

FILES = {"train": 3, "val": 2, "test": 2}


def data(root: Path, **keys) -> Data:
    return Data.model_validate({"name": "bsds500", "root": str(root), "patch": 32, "patches": 2, **keys})


def test_the_consensus_is_a_share_of_people_and_the_line_has_its_width():
    people = np.zeros((4, 9, 9), bool)
    people[:2, 2, :] = True  # two of four
    people[2:, 6, :] = True
    people[3, 4, :] = True  # one of four
    mean = np.rint(255 * people.mean(axis=0)).astype(np.uint8)
    half = target_of(mean, people, consensus=0.5, width=1)
    assert half.dtype == np.uint8 and half.shape == (9, 9, 5)
    assert np.flatnonzero(half[:, 0, 0]).tolist() == [2, 6] and set(np.unique(half)) == {0, 255}
    np.testing.assert_array_equal(half[..., 1:] > 0, np.moveaxis(people, 0, 2))
    assert np.flatnonzero(target_of(mean, people, consensus=0.25, width=1)[:, 0, 0]).tolist() == [2, 4, 6]
    assert np.flatnonzero(target_of(mean, people, consensus=0.5, width=3)[:, 0, 0]).tolist() == [1, 2, 3, 5, 6, 7]
    assert not target_of(mean, people, consensus=0.6, width=1)[..., 0].any()


@pytest.mark.parametrize("people", [4, 5, 6, 7, 8, 9])
def test_rounded_means_pass_the_share_that_made_them(people: int):
    for agreeing in range(1, people + 1):
        mean = np.full((1, 1), np.rint(255 * agreeing / people), np.uint8)
        nobody = np.zeros((0, 1, 1), bool)
        assert target_of(mean, nobody, consensus=agreeing / people, width=1).all()
        if agreeing < people:
            assert not target_of(mean, nobody, consensus=(agreeing + 0.5) / people, width=1).any()


@pytest.mark.parametrize("truth", ["boundary_mean", "groundTruth"])
def test_splits_are_those_published_and_targets_lie_on_the_drawings(tmp_path: Path, truth: str):
    layout(tmp_path, FILES, truth=truth)
    source = open_source(data(tmp_path))
    assert (len(source.train), len(source.validation), len(source.test)) == (3 * 2, 2, 2)
    assert source.train.shape == (32, 32, 3) and source.train.target_shape == (32, 32, 1) and source.mean == MEAN
    for index, (image, target) in enumerate(source.test.pairs(np.arange(2))):
        people = drawn(str(1006 + index))
        agreed = people.mean(axis=0) >= 0.3
        np.testing.assert_array_equal(target[..., 0] > 0, widen(agreed, 3))
        assert image.shape[:2] == target.shape[:2] == people.shape[1:]
        if truth == "groundTruth":
            np.testing.assert_array_equal(target[..., 1:] > 0, np.moveaxis(people, 0, 2))
            assert target.shape[2] == 1 + PEOPLE
        else:  # nobody's own drawing is known: the thin consensus stands for one
            np.testing.assert_array_equal(target[..., 1] > 0, agreed)
            assert target.shape[2] == 2
    assert source.train.load(np.arange(4)).shape == (4, 32, 32, 3)
    assert source.train.targets(np.arange(4)).shape == (4, 32, 32, 1)


def test_the_fingerprint_follows_what_makes_the_targets(tmp_path: Path):
    layout(tmp_path, FILES)
    plain = open_source(data(tmp_path)).fingerprint
    assert open_source(data(tmp_path)).fingerprint == plain
    changed = [{"consensus": 0.5}, {"edge_width": 1}, {"patch": 24}, {"patches": 3}]
    prints = {open_source(data(tmp_path, **keys)).fingerprint for keys in changed}
    assert len(prints) == len(changed) and plain not in prints
    before = stamp(data(tmp_path))
    assert before and stamp(data(tmp_path)) == before


def test_what_no_source_can_make_is_refused(tmp_path: Path):
    layout(tmp_path, FILES)
    with pytest.raises(RecipeError, match=r"^data\.edge_width = 4 is even; .* 1, 3 or 5"):
        open_source(data(tmp_path, edge_width=4))
    with pytest.raises(RecipeError, match=r"^data\.root is missing: 'bsds500' needs the folder or \.zip of BSDS500"):
        open_source(data(Path()).model_copy(update={"root": ""}))


def test_drawn_edges_are_there_at_once_and_the_same_every_time():
    source = open_source(Data.model_validate({"name": "drawn-edges"}))
    assert (len(source.validation), len(source.test)) == (COUNTS["validation"], COUNTS["test"])
    assert len(source.train) == 4 * COUNTS["train"] and source.train.shape == (32, 32, 3)
    image, target = pair(3, 0.3, 3)
    assert image.shape == (64, 80, 3) and target.shape == (64, 80, 4)
    again = pair(3, 0.3, 3)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(target, again[1])
    share = np.mean([(pair(index, 0.3, 3)[1][..., 0] > 0).mean() for index in range(6)])
    assert 0.05 < share < 0.4
    assert (target[..., 0] > 0)[target[..., 1] > 0].mean() > 0.95  # the exact outline is part of the consensus


@pytest.mark.real
def test_the_published_splits_and_the_share_of_edges():
    root = Path(os.environ["EDGESTILL_REAL_DATA"]) / "bsds500.zip"
    source = open_source(Data.model_validate({"name": "bsds500", "root": str(root)}))
    assert (len(source.train) // 12, len(source.validation), len(source.test)) == (200, 100, 200)
    shares = [(target[..., 0] > 0).mean() for _, target in source.validation.pairs(np.arange(100))]
    assert 0.05 < np.mean(shares) < 0.07
    people = [target.shape[2] - 1 for _, target in source.test.pairs(np.arange(200))]
    assert set(people) <= set(range(4, 10))
