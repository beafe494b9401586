"""BSDS500 for edge detection: photographs, and lines where enough of the annotators agree; splits as published.

    target = lines of `data.edge_width` pixels along { pixel : share of annotators who drew it >= data.consensus }

By default at least 30 % of the annotators (two of five, as most photographs have five) and lines of three pixels: no
two people draw the same pixel, so that a network of one-pixel lines would learn where they happened to differ. With it
one pixel in 17 is an edge (60 training images: 6.0 %), for which a weight of 10 is about fair; paper 003 does not state
what its targets were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import bsds500_files
from pipeline.data.pictures import Pair, picture_source
from pipeline.errors import RecipeError
from pipeline.thinning import widen

if TYPE_CHECKING:
    from pipeline.data.source import Source
    from pipeline.recipe import Data

PATCH = 128
PATCHES = 12  # of a training image of 481x321: with patches of 128 pixels each of its pixels is seen about once
CONSENSUS = 0.3
EDGE_WIDTH = 3
DRAWN = 255
# Encoders come from classifiers, which were trained with the statistics of ImageNet.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def open_source(data: Data) -> Source:
    """Patches of the 200 training photographs, the 100 and 200 others whole, all decoded into memory (0.4 GB).

    Raises UserError, one line, for what is missing or cannot be read.
    """
    consensus, width = drawn_with(data)
    found = bsds500_files.find(data.root)

    def pairs(split: str) -> list[Pair]:
        drawn = (target_of(mean, people, consensus=consensus, width=width) for mean, people in found.boundaries(split))
        return joined(found.photographs(split), drawn)

    return picture_source(
        name=data.name,
        where=f"{data.name} in {data.root!r}",
        train=pairs("train"),
        validation=pairs("val"),
        test=pairs("test"),
        patch=data.patch or PATCH,
        per_image=data.patches or PATCHES,
        mean=MEAN,
        std=STD,
        fingerprint=found.fingerprint() + f"-{consensus:g}-{width}-{data.patch or PATCH}-{data.patches or PATCHES}",
    )


def stamp(data: Data) -> Any:
    """Sizes and times of the files."""
    return bsds500_files.stamp(data.root)


def drawn_with(data: Data) -> tuple[float, int]:
    """The consensus asked for and the width of lines. Raises `RecipeError` for a width that has no middle."""
    width = data.edge_width or EDGE_WIDTH
    if width % 2 == 0:
        raise RecipeError(f"data.edge_width = {width} is even; lines have a middle pixel: write 1, 3 or 5")
    return data.consensus or CONSENSUS, width


def target_of(mean: np.ndarray, people: np.ndarray, *, consensus: float, width: int) -> np.ndarray:
    """uint8 (H, W, 1 + people), 0 or 255: the wide lines of the consensus, then what each person drew.

    mean: uint8 (H, W), round(255 x share of people). people: bool (people, H, W); with none, the thin consensus stands
    as one person's drawing.
    """
    agreed = mean >= DRAWN * consensus - 0.5  # the mean was rounded
    drawings = people if len(people) else agreed[None]
    return DRAWN * np.concatenate([widen(agreed, width)[None], drawings]).astype(np.uint8).transpose(1, 2, 0)


def joined(photographs: Iterable[np.ndarray], targets: Iterable[np.ndarray]) -> list[Pair]:
    return list(zip(photographs, targets, strict=True))
