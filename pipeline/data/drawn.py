"""Pictures drawn from a seed: shapes of one colour each over a shaded ground, with the map of what is where.

For smoke runs and tests of dense tasks: nothing to download, edges and regions are known exactly. numpy only.
"""

from __future__ import annotations

import numpy as np

SHAPES = 9
GRAIN = 4.0  # gray levels, standard deviation


def picture(index: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(image uint8 (H, W, 3), regions int64 (H, W): 0 the ground, k what the k-th shape shows); a pure function.

    Discs, half-planes' corners and stripes in random colours, a linear shading, and a little grain.
    """
    draw = np.random.default_rng([seed, index])
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    tilt = draw.uniform(-60, 60, 3)
    image = draw.uniform(60, 200, 3) + tilt * (rows / height - 0.5)[..., None]
    regions = np.zeros((height, width), np.int64)
    for number in range(1, SHAPES + 1):
        kind, angle = draw.integers(0, 3), draw.uniform(0, np.pi)
        row, column, size = (
            draw.uniform(0, height),
            draw.uniform(0, width),
            draw.uniform(0.08, 0.3) * min(height, width),
        )
        down, along = rows - row, columns - column
        u, v = down * np.cos(angle) + along * np.sin(angle), along * np.cos(angle) - down * np.sin(angle)
        inside = (u**2 + v**2 < size**2, np.maximum(abs(u), abs(v)) < size, abs(u) < size / 3)[kind]
        regions[inside] = number
        image[inside] = draw.uniform(0, 255, 3) + (tilt * (rows / height - 0.5)[..., None])[inside] / 2
    image += draw.normal(0, GRAIN, image.shape)
    return image.round().clip(0, 255).astype(np.uint8), regions


def borders(regions: np.ndarray) -> np.ndarray:
    """Where a region ends: bool (H, W), one pixel wide, on the upper or left side of each border."""
    edge = np.zeros(regions.shape, bool)
    edge[:-1] |= regions[:-1] != regions[1:]
    edge[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    return edge
