"""Near duplicates: found when scaled, recompressed or touched; different pictures are told apart; linear in time."""

from __future__ import annotations

import io
import json
import time
from math import comb
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.near import DISTANCE, near, near_facts, perceptual_hashes
from pipeline.data.source import InMemory
from pipeline.gates.intervals import exact_share
from pipeline.recipe_file import load_recipe
from pipeline.stage import Context
from pipeline.stages import data as data_stage


def photos(n: int, side: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, uint8 (n, side, side, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 9, 9, 3), dtype=np.uint8)
    return np.stack([np.array(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in small])


def set_of(images: np.ndarray) -> InMemory:
    return InMemory(images, np.arange(len(images), dtype=np.int64) % 2)


def touched(image: np.ndarray, how: str) -> np.ndarray:
    picture = Image.fromarray(image)
    if how == "jpeg":
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=60)
        return np.array(Image.open(buffer))
    if how == "scaled":
        return np.array(picture.resize((40, 40)).resize((48, 48)))
    if how == "brighter":
        return np.clip(image.astype(int) + 12, 0, 255).astype(np.uint8)
    return np.clip(image + np.random.default_rng(1).normal(0, 3, image.shape), 0, 255).astype(np.uint8)


# How many of OTHERS other pictures are found when touched so, as `found_of` counts them. One bit of two neighbours
# turns when their gray levels lie closer than the change, which JPEG at quality 60 makes as large as it is here.
OTHERS = 2_000
FOUND = {"jpeg": 1_627, "scaled": 2_000, "brighter": 2_000, "noise": 2_000}
COPIES = 40
SEEN = {
    "jpeg": 35,
    "scaled": 40,
    "brighter": 40,
    "noise": 40,
}  # of the test's own copies: a change that finds fewer shows


def found_of(how: str) -> int:
    """Of OTHERS pictures that the test below does not see."""
    images = photos(OTHERS, seed=77)
    pairs = [near_one(image, touched(image, how)) for image in images]
    return sum(pairs)


def near_one(image: np.ndarray, other: np.ndarray) -> int:
    return near(*(perceptual_hashes(set_of(one[None]), np.arange(1)) for one in (image, other))).count


def fewest(how: str) -> int:
    """Fewer of COPIES are found in at most one case of a thousand, the share being at its own bound of a thousand."""
    share = exact_share(FOUND[how], OTHERS, confidence=0.999).lower
    terms = [comb(COPIES, k) * share**k * (1 - share) ** (COPIES - k) for k in range(COPIES + 1)]
    return next(k for k in range(COPIES + 1) if sum(terms[: k + 1]) > 0.001)


@pytest.mark.slow
@pytest.mark.parametrize("how", list(FOUND))
def test_the_shares_found_are_those_that_the_bounds_are_made_of(how: str) -> None:
    assert abs(found_of(how) - FOUND[how]) <= OTHERS // 100  # another JPEG library rounds otherwise


@pytest.mark.parametrize("how", list(FOUND))
def test_touched_copies_are_found_and_others_are_not(how: str) -> None:
    """Chance: on CIFAR-10 2 of 450 million pairs of two labels are near (tests/benchmarks/near_duplicates.py), so of
    these 40,000 one is in one case of 5,000."""
    train, test = photos(200, seed=1), photos(200, seed=2)
    test[:COPIES] = [touched(image, how) for image in train[100:140]]
    facts = near_facts(set_of(train), set_of(test), train=np.arange(200), calibration=np.arange(90))
    assert max(fewest(how), SEEN[how]) <= facts["train_in_test"]["n"] <= COPIES and facts["train_in_test"]["of"] == 200
    assert facts["calibration_in_test"]["n"] == 0
    place, other = facts["train_in_test"]["examples"][0]
    assert place - other == 100


def test_the_distance_is_exact_and_empty_pictures_tell_nothing() -> None:
    one = np.array([0x0F0F_F0F0_3C3C_55AA], np.uint64)
    for bits in range(7):
        flipped = one ^ np.uint64(sum(1 << (9 * k) for k in range(bits)))
        assert near(one, flipped).count == (bits <= DISTANCE)
    flat = perceptual_hashes(set_of(np.full((3, 8, 8, 1), 77, np.uint8)), np.arange(3))
    assert not flat.any()
    assert near(flat, flat).count == 0 and near(flat, flat).empty == 6


def test_crowded_bands_cost_no_more_than_linear_time() -> None:
    times = []
    for n in (20_000, 80_000):
        hashes = np.random.default_rng(0).integers(0, 2**62, n).astype(np.uint64) & ~np.uint64(0xFFFF)
        begin = time.process_time()
        found = near(hashes, hashes[::-1] ^ np.uint64(0xFF_0000_0000_0000))
        times.append(time.process_time() - begin)
        assert found.unsure > 0
    assert times[1] < 12 * max(times[0], 0.05)


def test_the_data_stage_reports_them_on_request_only(tmp_path: Path) -> None:
    plain, asked = (load_recipe("digits", ["data.near_duplicates=true"] if on else []) for on in (False, True))
    assert "near_duplicates" not in data_stage.stage(plain).config["data"]
    said: list[str] = []
    stage = data_stage.stage(asked)
    stage.run(Context(stage=stage, folder=tmp_path, inputs={}, say=said.append))
    facts = json.loads((tmp_path / "data.json").read_text())["near_duplicates"]
    assert facts["distance"] == DISTANCE
    assert {"train_in_test", "validation_in_test", "calibration_in_test"} <= facts.keys()
    assert "near one of the test split" in said[-1]
