"""What networks made of one image, for the report: the same piece of input, target and answers, and where they err.

numpy only. PNG as base64 text; a piece is small, so that a report with three images stays below a megabyte.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.reports.png import encode

SIDE = 160  # pixels of target
STEP = 16  # of the grid on which the piece is looked for
# Black, violet, red, orange, pale yellow: light grows with the value, so that it reads in gray too.
COLOURS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)
LEAST = 8.0  # gray levels: an error below is never drawn as if it were large


def figure(image: np.ndarray, target: np.ndarray, answers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One image for the report: `size` of the whole target, `box` of the piece in it (top, left, height, width),
    `input`, `target` and `answers` (name -> picture, error) as base64 PNG, and `brightest`: the error in gray levels
    that is drawn in the lightest colour, the same for all answers.

    image: uint8 (H, W, C). target: uint8 (s*H, s*W, C'). answers: uint8 of the target's shape. The piece is where the
    target has most detail, cut to whole pixels of the input.
    """
    scale = target.shape[0] // image.shape[0]
    top, left, height, width = most_detail(target, scale)
    inner = (slice(top, top + height), slice(left, left + width))
    below = tuple(slice(part.start // scale, part.stop // scale) for part in inner)
    errors = {
        name: np.abs(answer[inner].astype(np.float64) - target[inner]).mean(2) for name, answer in answers.items()
    }
    most = max([LEAST, *(float(np.quantile(error, 0.995)) for error in errors.values())])
    return {
        "size": [int(side) for side in target.shape[:2]],
        "box": [top, left, height, width],
        "scale": scale,
        "brightest": round(most, 1),
        "input": text(image[below]),
        "target": text(target[inner]),
        "answers": {
            name: {
                "picture": text(answer[inner]),
                "error": text(coloured(errors[name] / most)),
                "mean_error": round(float(errors[name].mean()), 2),
            }
            for name, answer in answers.items()
        },
    }


def most_detail(target: np.ndarray, scale: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the piece with the largest sum of differences between neighbours, in multiples of
    the scale."""
    gray = target.astype(np.float64).mean(2)
    detail = np.zeros_like(gray)
    detail[:-1] += np.abs(np.diff(gray, axis=0))
    detail[:, :-1] += np.abs(np.diff(gray, axis=1))
    sides = [min(SIDE // scale, length // scale) * scale for length in gray.shape]
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    step = -(-STEP // scale) * scale
    tops, lefts = (np.arange(0, length - side + 1, step) for length, side in zip(gray.shape, sides, strict=True))
    inside = (
        total[np.ix_(tops + sides[0], lefts + sides[1])]
        - total[np.ix_(tops, lefts + sides[1])]
        - total[np.ix_(tops + sides[0], lefts)]
        + total[np.ix_(tops, lefts)]
    )
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(tops[row]), int(lefts[column]), sides[0], sides[1]


def coloured(values: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of values (H, W), 0 to 1 and cut there."""
    places = np.clip(values, 0, 1) * (len(COLOURS) - 1)
    channels = [np.interp(places, np.arange(len(COLOURS)), COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=2).round().astype(np.uint8)


def text(picture: np.ndarray) -> str:
    """A base64 PNG; pictures of neither one nor three channels show their first."""
    shown = picture if picture.shape[2] in (1, 3) else picture[..., :1]
    return base64.b64encode(encode(np.ascontiguousarray(shown))).decode("ascii")
