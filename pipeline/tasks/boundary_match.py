"""Boundaries against what people drew: counts of the BSDS benchmark, of which ODS and OIS are made (Martin, Fowlkes,
Malik, "Learning to Detect Natural Image Boundaries Using Local Brightness, Color, and Texture Cues", TPAMI 2004).

A map of probabilities is thinned (ridges are found as in Dollar and Zitnick, "Fast Edge Detection Using Structured
Forests", TPAMI 2015, edgesNms: the usual step before the benchmark; then `pipeline.thinning`), cut at `LEVELS`, and its
pixels are matched one to one with those that each person drew, at most 0.0075 of the image's diagonal away.

Differences from the published code:
  - `correspondPixels` finds the cheapest assignment, with random outliers of a hundred times the largest cost, by
    distance; this is the largest matching (Hopcroft-Karp), so that it may find a pair more, never one less.
  - The map is thinned once, not at every threshold, and cut at 19 thresholds, not at 99; a coarser grid can only lower
    ODS.
numpy only. (scipy's `maximum_bipartite_matching` takes from a millisecond to minutes on such graphs.)
"""

from __future__ import annotations

import numpy as np

from pipeline.thinning import thin

LEVELS = np.arange(1, 20) / 20  # of probability
TOLERANCE = 0.0075  # of the image's diagonal
SLACK = np.float32(1.01)  # edgesNms: a pixel stays where it is nearly the largest along the normal


def counts(probability: np.ndarray, people: np.ndarray, tolerance: float = TOLERANCE) -> dict[str, np.ndarray]:
    """Of probabilities float32 (H, W) and drawings bool (people, H, W), int64, one value a level where (K,):

    `hit` (K,): predicted pixels that match anybody's; `found` (K,): predicted pixels; `recalled` (K,): matched pixels
    of all people; `drawn` (): pixels of all people. A map with a value that is not finite is wrong in every pixel.
    """
    drawn = np.array(people.sum(), np.int64)
    zero = np.zeros(len(LEVELS), np.int64)
    if not np.isfinite(probability).all():
        return {"hit": zero, "found": zero + probability.size, "recalled": zero, "drawn": drawn}
    lines = ridges(probability)
    rows, columns = np.nonzero(lines)
    level = np.searchsorted(LEVELS, probability[rows, columns].astype(np.float64), side="right")  # levels it reaches
    order = np.argsort(-level, kind="stable")
    rows, columns, level = rows[order], columns[order], level[order]
    reached = level[:, None] > np.arange(len(LEVELS))
    reach = tolerance * float(np.hypot(*probability.shape))
    accepted = [largest_matching(rows, columns, drawing, reach) for drawing in people]
    anybody = np.logical_or.reduce([np.zeros(len(rows), bool), *accepted])
    return {
        "hit": reached[anybody].sum(axis=0, dtype=np.int64),
        "found": reached.sum(axis=0, dtype=np.int64),
        "recalled": np.add.reduce([zero, *(reached[matched].sum(axis=0, dtype=np.int64) for matched in accepted)]),
        "drawn": drawn,
    }


def largest_matching(rows: np.ndarray, columns: np.ndarray, drawing: np.ndarray, reach: float) -> np.ndarray:
    """Which of the predicted pixels (rows, columns), each (N,), are matched one to one with pixels of a drawing, bool
    (H, W), at most `reach` pixels away: bool (N,).

    Pixels come in the order given, each by an augmenting path (Kuhn), so that for every n the first n have as many
    matches as they can have at all: one matching serves all thresholds when pixels are sorted by probability.
    """
    matched = np.zeros(len(rows), bool)
    first, near = neighbours(rows, columns, drawing, reach)
    owner = [-1] * int(np.count_nonzero(drawing))  # predicted pixel of each drawn one
    partner = [-1] * len(rows)
    # The latest search that saw a drawn pixel. A search that fails closes what it saw: no later path leads out of it.
    seen = [-1] * len(owner)
    for start in range(len(rows)):
        beside = near[first[start] : first[start + 1]]
        for end in beside:
            if owner[end] < 0:  # most pixels: one beside it is free
                break
        else:
            end = -1
        if end >= 0 or not beside:
            if beside:
                owner[end], partner[start], matched[start] = start, end, True
            continue
        queue, came_from = [start], {}
        for place in queue:
            for pixel in near[first[place] : first[place + 1]]:
                if seen[pixel] >= start:
                    continue
                seen[pixel] = start
                came_from[pixel] = place
                if owner[pixel] < 0:
                    end = pixel
                    break
                queue.append(owner[pixel])
            if end >= 0:
                break
        if end < 0:
            for pixel in came_from:
                seen[pixel] = len(rows)
            continue
        matched[start] = True
        while end >= 0:
            place = came_from[end]
            owner[end], partner[place], end = place, end, partner[place]
    return matched


def neighbours(rows: np.ndarray, columns: np.ndarray, drawing: np.ndarray, reach: float) -> tuple[list[int], list[int]]:
    """Numbers of the drawn pixels within `reach` of each predicted one, the nearest first: those of predicted pixel i
    are `near[first[i] : first[i+1]]`. Drawn pixels are numbered row by row.
    """
    border = int(reach)
    height, width = drawing.shape
    stride = width + 2 * border
    numbers = np.full((height + 2 * border) * stride, -1, np.int64)
    numbers[(rows + border) * stride + columns + border] = np.arange(len(rows))
    down, along = (part.reshape(-1) for part in np.mgrid[-border : border + 1, -border : border + 1])
    inside = np.flatnonzero(down**2 + along**2 <= reach**2)
    inside = inside[np.argsort(down[inside] ** 2 + along[inside] ** 2, kind="stable")]
    drawn_rows, drawn_columns = np.nonzero(drawing)
    at = (drawn_rows + border) * stride + drawn_columns + border
    found = numbers[at[:, None] + (down * stride + along)[inside]]
    pixel, step = np.nonzero(found >= 0)
    predicted = found[pixel, step]
    order = np.argsort(predicted * len(inside) + step, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(predicted, minlength=len(rows)))])
    return first.tolist(), pixel[order].tolist()


def ridges(probability: np.ndarray) -> np.ndarray:
    """Lines one pixel wide, bool (H, W), along the ridges of float32 (H, W) that reach the lowest of `LEVELS`."""
    smooth = triangle(probability.astype(np.float32), 1)
    candidates = probability >= LEVELS[0]
    rows, columns = np.nonzero(candidates)
    along, down = normals(smooth, rows, columns)
    own = smooth[rows, columns] * SLACK
    highest = np.ones(len(rows), bool)
    for side in (-1, 1):
        highest &= own >= between(smooth, rows + side * down, columns + side * along)
    kept = np.zeros(probability.shape, bool)
    kept[rows[highest], columns[highest]] = True
    return thin(kept)


def normals(smooth: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors across the ridge at each place, (along columns, along rows): where the surface bends most.

    Down on the ridge, up on its flanks, so that a pixel beside a ridge is compared across it too.
    """
    wide = triangle(smooth, 4)
    to_rows, to_columns = np.gradient(wide)
    columns_twice = np.gradient(to_columns, axis=1)[rows, columns]
    rows_columns, rows_twice = (part[rows, columns] for part in np.gradient(to_rows)[::-1])
    upwards = 0.5 * np.arctan2(2 * rows_columns, columns_twice - rows_twice)  # the direction of largest curvature
    angle = np.where(columns_twice + rows_twice > 0, upwards, upwards + np.pi / 2)
    return np.cos(angle), np.sin(angle)


def between(picture: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values at places between pixels, bilinear; beyond the border that of the border."""
    height, width = picture.shape
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = np.minimum(rows.astype(np.int64), height - 2), np.minimum(columns.astype(np.int64), width - 2)
    down, along = rows - top, columns - left
    upper = picture[top, left] * (1 - along) + picture[top, left + 1] * along
    lower = picture[top + 1, left] * (1 - along) + picture[top + 1, left + 1] * along
    return upper * (1 - down) + lower * down


def triangle(picture: np.ndarray, reach: int) -> np.ndarray:
    """Float32 (H, W) smoothed by a triangle of 2 x reach + 1 pixels along both sides; the border is repeated."""
    weights = (reach + 1 - np.abs(np.arange(-reach, reach + 1))).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(picture, [(reach, reach) if which == axis else (0, 0) for which in (0, 1)], mode="edge")
        length = picture.shape[axis]
        parts = [padded[k : k + length] if axis == 0 else padded[:, k : k + length] for k in range(2 * reach + 1)]
        picture = sum((weight * part for weight, part in zip(weights, parts, strict=True)), np.zeros_like(picture))
    return picture
