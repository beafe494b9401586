"""Large images through a network of fixed input size: overlapping tiles, joined without seams. numpy only.

A network sees zeros (or whatever it pads with) beyond the edge of a tile, so its answer is wrong there. Of the pixels
that two tiles share the outer quarter is thrown away on either side, and over the rest one answer fades into the other:
a network that looks no further than a quarter of the overlap gives what it would give for the whole image, others give
no visible seam. At the image's own edge nothing is thrown away. Memory: the answer and one batch of tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

DROPPED = 4  # the overlap divided by this is thrown away on either side
TILE_PIXELS = 1 << 18  # pixels of input in one call, where a runner takes any number of tiles

# Tiles uint8 (N, h, w, C) to answers float32 (N, C', s*h, s*w).
Answer = Callable[[np.ndarray], np.ndarray]


def tiled(answer: Answer, image: np.ndarray, *, tile: tuple[int, int], overlap: int) -> np.ndarray:
    """The answer for a whole image uint8 (H, W, C) of any size: float32 (s*H, s*W, C'), in C order.

    tile: (h, w), the input of `answer`; the scale s follows from what it gives. overlap: pixels of input that
    neighbouring tiles share, cut to half of the tile's side. An image smaller than a tile is padded by reflection, and
    its answer cut to size. Raises ValueError for an answer whose size is no whole multiple of the tile's.
    """
    height, width = image.shape[:2]
    image = padded(image, tile)
    tops = starts(image.shape[0], tile[0], overlap)
    lefts = starts(image.shape[1], tile[1], overlap)
    places = [(top, left) for top in tops for left in lefts]
    at_once = max(1, TILE_PIXELS // (tile[0] * tile[1]))
    result: np.ndarray | None = None
    scale = 1
    weights: dict[Any, np.ndarray] = {}
    for first in range(0, len(places), at_once):
        part = places[first : first + at_once]
        tiles = np.stack([image[top : top + tile[0], left : left + tile[1]] for top, left in part])
        answers = answer(tiles)
        if result is None:
            scale = scale_of(answers.shape, tile)
            shape = (image.shape[0] * scale, image.shape[1] * scale, answers.shape[1])
            result = np.zeros(shape, np.float32)
        for (top, left), own in zip(part, answers, strict=True):
            down = weights.setdefault(("down", top), share(tops, tops.index(top), tile[0], scale))
            along = weights.setdefault(("along", left), share(lefts, lefts.index(left), tile[1], scale))
            rows = slice(top * scale, top * scale + len(down))
            columns = slice(left * scale, left * scale + len(along))
            shares = down[:, None] * along
            # Where its share is nothing a tile adds nothing, not even a value that is not finite.
            part_sum = np.where(shares[..., None] > 0, own.transpose(1, 2, 0) * shares[..., None], 0)
            result[rows, columns] += part_sum.astype(np.float32, copy=False)
    assert result is not None
    return np.ascontiguousarray(result[: height * scale, : width * scale])


def padded(image: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """The image, at least as large as a tile: reflected at its lower and right edge where it is smaller."""
    missing = [max(0, side - have) for side, have in zip(tile, image.shape[:2], strict=True)]
    if not any(missing):
        return image
    return np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="reflect")


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one side: neighbours share at least `overlap` pixels, and the last one ends at the edge.

    They stand as evenly as whole pixels allow.
    """
    overlap = min(overlap, tile // 2)
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def share(places: list[int], index: int, tile: int, scale: int) -> np.ndarray:
    """What the tile number `index` adds to each of its output pixels along one side: float32 (scale * tile,).

    The shares of all tiles sum to 1 in every pixel.
    """
    result = np.ones(tile * scale, np.float64)
    if index:
        rise = fade(places[index - 1] + tile - places[index], scale)
        result[: len(rise)] *= rise
    if index + 1 < len(places):
        rise = fade(places[index] + tile - places[index + 1], scale)
        result[len(result) - len(rise) :] *= 1 - rise
    return result.astype(np.float32)


def fade(shared: int, scale: int) -> np.ndarray:
    """From 0 to 1 over the output pixels that two tiles share: float64 (scale * shared,)."""
    out = shared // DROPPED * scale
    between = shared * scale - 2 * out
    ramp = (np.arange(between) + 0.5) / max(1, between)
    return np.concatenate([np.zeros(out), ramp, np.ones(out)])


def scale_of(answers: tuple[int, ...], tile: tuple[int, int]) -> int:
    """How many output pixels one input pixel has along a side. Raises ValueError where that is no whole number."""
    scale = answers[2] // tile[0] if len(answers) == 4 else 0
    if not scale or answers[2:] != (tile[0] * scale, tile[1] * scale):
        raise ValueError(
            f"tiles of {tile[0]}x{tile[1]} are answered with shape {list(answers[1:])}; expected (channels, height, "
            "width) in whole multiples of the tile's"
        )
    return scale
