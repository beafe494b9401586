"""Drawn shapes with their outlines, for smoke runs of edge detection: nothing to download, the truth is exact.

Three annotators look at every picture: one draws the outlines, one is a pixel off, one leaves every fourth shape out.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.bsds500 import MEAN, STD, drawn_with, target_of
from pipeline.data.drawn import picture
from pipeline.data.pictures import Pair, picture_source
from pipeline.thinning import outlines

if TYPE_CHECKING:
    from pipeline.data.source import Source
    from pipeline.recipe import Data

COUNTS = {"train": 24, "validation": 8, "test": 16}
HEIGHT, WIDTH = 64, 80
PATCH = 32
PATCHES = 4
VERSION = 2  # of the drawings


def open_source(data: Data) -> Source:
    """Patches of 24 pictures of 80x64 pixels, 8 and 16 others whole."""
    settings = drawn_with(data)
    splits: dict[str, list[Pair]] = {}
    number = 0
    for split, count in COUNTS.items():
        splits[split] = [pair(index, *settings) for index in range(number, number + count)]
        number += count
    return picture_source(
        name=data.name,
        where=data.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        patch=data.patch or PATCH,
        per_image=data.patches or PATCHES,
        mean=MEAN,
        std=STD,
    )


def stamp(data: Data) -> Any:
    """The version of the drawings."""
    return hashlib.sha256(repr((VERSION, COUNTS, HEIGHT, WIDTH)).encode()).hexdigest()


def pair(index: int, consensus: float, width: int) -> Pair:
    """(image uint8 (64, 80, 3), target uint8 (64, 80, 4)); a pure function of its arguments."""
    image, regions = picture(index, HEIGHT, WIDTH)
    exact = outlines(regions)
    hasty = outlines(np.where(regions % 4 == 3, 0, regions))
    people = np.stack([exact, np.roll(exact, 1, axis=1), hasty])
    mean = np.rint(255 * people.mean(axis=0)).astype(np.uint8)
    return image, target_of(mean, people, consensus=consensus, width=width)
