"""Small trees in both layouts of BSDS500, with drawings by several people that disagree by a pixel."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

PEOPLE = 4
HEIGHT, WIDTH = 40, 56


def drawn(name: str) -> np.ndarray:
    """bool (PEOPLE, H, W): the outline of a box; the last person is off by a pixel, odd names stand upright."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    shape = (HEIGHT, WIDTH) if int(name) % 2 == 0 else (WIDTH, HEIGHT)
    top, left = random.integers(4, 10, size=2)
    bottom, right = shape[0] - random.integers(6, 12), shape[1] - random.integers(6, 12)
    people = np.zeros((PEOPLE, *shape), dtype=bool)
    for person in range(PEOPLE):
        off = int(person == PEOPLE - 1)
        outline = people[person]
        outline[top + off : bottom + off + 1, [left + off, right + off]] = True
        outline[[top + off, bottom + off], left + off : right + off + 1] = True
    return people


def photograph(name: str) -> np.ndarray:
    """uint8 (H, W, 3): the box that `drawn` outlines, bright on dark."""
    people = drawn(name)
    rows, columns = np.flatnonzero(people[0].any(1)), np.flatnonzero(people[0].any(0))
    image = np.full((*people.shape[1:], 3), (40, 60, 90), np.uint8)
    image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = (220, 180, 150)
    return image


def layout(root: Path, counts: dict[str, int], *, truth: str = "boundary_mean", prefix: str = "") -> None:
    """Write `counts` photographs a split under `root`/`prefix`, with `truth` (boundary_mean, groundTruth or "")."""
    number = 1000
    for split, count in counts.items():
        for folder in ("images", truth):
            if folder:
                (root / prefix / folder / split).mkdir(parents=True)
        for _ in range(count):
            number += 1
            name = str(number)
            Image.fromarray(photograph(name)).save(root / prefix / "images" / split / f"{name}.jpg", quality=95)
            people = drawn(name)
            if truth == "boundary_mean":
                mean = np.rint(255 * people.mean(0)).astype(np.uint8)
                Image.fromarray(mean).save(root / prefix / truth / split / f"{name}.png")
            elif truth == "groundTruth":
                cells = np.empty((1, PEOPLE), dtype=object)
                for place in range(PEOPLE):
                    cells[0, place] = {
                        "Segmentation": np.ones(people.shape[1:], np.uint16),
                        "Boundaries": people[place].astype(np.uint8),
                    }
                savemat(root / prefix / truth / split / f"{name}.mat", {"groundTruth": cells})
