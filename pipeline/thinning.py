"""Lines one pixel wide, as the boundary benchmark draws them. numpy only.

Thinning is that of Lam, Lee, Suen, "Thinning Methodologies: A Comprehensive Survey" (TPAMI 1992, page 879), the one
that BSDS500's own code calls: with `outlines` before it, BSDS500's published `Boundaries` come out of its label maps
exactly (six images of all splits were compared, no pixel differed).
"""

from __future__ import annotations

import functools

import numpy as np

# Neighbours x1..x8 of the paper: east, then counter-clockwise; (rows, columns).
AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def thin(mask: np.ndarray) -> np.ndarray:
    """The lines in the middle of `mask` bool (H, W), connected as it is, bool (H, W); until nothing changes."""
    padded = np.pad(mask, 1).astype(np.uint8)
    flat, width = padded.reshape(-1), padded.shape[1]
    places = np.flatnonzero(flat)
    steps = [row * width + column for row, column in AROUND]
    tables = removable()
    while True:
        before = len(places)
        for table in tables:
            code = np.zeros(len(places), np.uint8)
            for bit, step in enumerate(steps):
                code |= flat[places + step] << np.uint8(bit)
            goes = table[code]
            flat[places[goes]] = 0
            places = places[~goes]
        if len(places) == before:
            return padded[1:-1, 1:-1].astype(bool)


@functools.cache
def removable() -> tuple[np.ndarray, np.ndarray]:
    """For each of the two half-steps: bool (256,), whether a pixel with these neighbours (bit k is x(k+1)) is taken."""
    tables = np.zeros((2, 256), bool)
    for code in range(256):
        x = [(code >> bit) & 1 for bit in range(8)]
        crossings = sum(not x[2 * k] and bool(x[2 * k + 1] or x[(2 * k + 2) % 8]) for k in range(4))
        pairs = min(
            sum(x[2 * k] | x[2 * k + 1] for k in range(4)), sum(x[2 * k + 1] | x[(2 * k + 2) % 8] for k in range(4))
        )
        if crossings == 1 and 2 <= pairs <= 3:
            tables[0, code] = not ((x[1] or x[2] or not x[7]) and x[0])
            tables[1, code] = not ((x[5] or x[6] or not x[3]) and x[4])
    return tables[0], tables[1]


def outlines(labels: np.ndarray) -> np.ndarray:
    """Boundaries bool (H, W) of a label map (H, W): pixels unlike the one to the right, below or between, thinned."""
    drawn = np.zeros(labels.shape, bool)
    drawn[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    drawn[:-1] |= labels[:-1] != labels[1:]
    drawn[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return thin(drawn)


def widen(mask: np.ndarray, width: int) -> np.ndarray:
    """Lines of bool (H, W) drawn `width` pixels wide (odd): every pixel within width // 2 rows and columns of one."""
    assert width % 2 == 1, width
    reach = width // 2
    for axis in (0, 1):
        padded = np.pad(mask, [(reach, reach) if axis == which else (0, 0) for which in (0, 1)])
        length = mask.shape[axis]
        mask = np.logical_or.reduce([np.take(padded, range(k, k + length), axis=axis) for k in range(width)])
    return mask
