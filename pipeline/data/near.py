"""Near duplicates by perceptual hash: the same photograph in two sets, scaled, recompressed or slightly touched.

dHash (Krawetz, "Kind of Like That", 2013): the image in gray at 9 x 8, one bit for each pair of neighbours in a row, 64
bits. Two images are near when at most `DISTANCE` bits differ. Found in time linear in the number of images: of
DISTANCE + 1 bands of bits at least one must be equal, so only images that share a band are compared.

It finds much and not all: pictures scaled, made brighter or noisier nearly always, 81 % of those saved as JPEG at
quality 60 (2,000 smooth ones, tests/test_pipeline_data_near.py). By chance 2 of 450 million pairs of CIFAR-10 images of
two labels are near (tests/benchmarks/near_duplicates.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.source import Images

DISTANCE = 3
BANDS = DISTANCE + 1
BITS = 64 // BANDS
ROWS, COLUMNS = 8, 9
TOLERANCE = 1.0  # gray levels by which a neighbour must be brighter: flat areas give zeros, not noise
FEWEST_BITS = 4  # a hash with fewer ones, or fewer zeros, is that of an empty picture and tells nothing
MOST_IN_A_BAND = 64  # compared at most with so many that share a band; more are counted as left out
CHUNK = 512
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Near:
    """How many of one set are near one of another. pairs: up to EXAMPLES (place, place) in the two sets.

    empty: hashes that tell nothing, of both sets. unsure: images whose band was too crowded to be compared with all.
    """

    count: int
    pairs: tuple[tuple[int, int], ...]
    empty: int
    unsure: int


def perceptual_hashes(images: Images, indices: np.ndarray) -> np.ndarray:
    """uint64 (N,): the dHash of each image, in the order of `indices`."""
    parts = [
        _hashes(images.load(np.asarray(indices[start : start + CHUNK], np.int64)))
        for start in range(0, len(indices), CHUNK)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _hashes(images: np.ndarray) -> np.ndarray:
    gray = images.astype(np.float32).mean(axis=-1)
    small = np.einsum("rh,nhw,cw->nrc", _areas(ROWS, gray.shape[1]), gray, _areas(COLUMNS, gray.shape[2]))
    bits = (small[:, :, 1:] - small[:, :, :-1] > TOLERANCE).reshape(len(images), -1)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)[:, 0]


def _areas(parts: int, size: int) -> np.ndarray:
    """float32 (parts, size): the share of each pixel in each of `parts` equal pieces of a line, rows summing to 1."""
    edges = np.linspace(0, size, parts + 1)
    pixels = np.arange(size)
    shares = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares = np.clip(shares, 0, None)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def near(hashes: np.ndarray, others: np.ndarray) -> Near:
    """Those of `hashes` (uint64 (N,)) within DISTANCE bits of one of `others` (uint64 (M,))."""
    telling = [_telling(hashes), _telling(others)]
    mine, theirs = (np.flatnonzero(kept) for kept in telling)
    empty = int((~telling[0]).sum() + (~telling[1]).sum())
    found = np.full(len(hashes), -1, np.int64)
    unsure = np.zeros(len(hashes), bool)
    mask = np.uint64((1 << BITS) - 1)
    for band in range(BANDS):
        shift = np.uint64(band * BITS)
        keys = (others[theirs] >> shift) & mask
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], theirs[order]
        wanted = (hashes[mine] >> shift) & mask
        first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        unsure[mine] |= last - first > MOST_IN_A_BAND
        for step in range(min(MOST_IN_A_BAND, int((last - first).max(initial=0)))):
            there = (first + step < last) & (found[mine] < 0)
            if not there.any():
                continue
            at = places[(first + step)[there]]
            close = _bits(hashes[mine[there]] ^ others[at]) <= DISTANCE
            found[mine[there][close]] = at[close]
    hits = np.flatnonzero(found >= 0)
    return Near(
        count=len(hits),
        pairs=tuple((int(place), int(found[place])) for place in hits[:EXAMPLES]),
        empty=empty,
        unsure=int((unsure & (found < 0)).sum()),
    )


def _telling(hashes: np.ndarray) -> np.ndarray:
    ones = _bits(hashes)
    return (ones >= FEWEST_BITS) & (ones <= 64 - FEWEST_BITS)


def _bits(values: np.ndarray) -> np.ndarray:
    """Number of ones in each of uint64 (N,), int64 (N,)."""
    return np.unpackbits(values.view(np.uint8).reshape(len(values), 8), axis=1).sum(axis=1).astype(np.int64)


def near_facts(train: Images, test: Images, /, **places: np.ndarray) -> dict[str, Any]:
    """What data.json says: for each set of `places` in `train`, how many images are near one of `test`.

    Examples are places in `train` and in `test`.
    """
    gate = perceptual_hashes(test, np.arange(len(test)))
    facts: dict[str, Any] = {"method": "dHash, 64 bits", "distance": DISTANCE}
    for name, indices in places.items():
        found = near(perceptual_hashes(train, indices), gate)
        facts[f"{name}_in_test"] = {
            "n": found.count,
            "of": len(indices),
            "empty": found.empty,
            "unsure": found.unsure,
            "examples": [[int(indices[mine]), other] for mine, other in found.pairs],
        }
    return facts
