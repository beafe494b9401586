"""Edge detection: Dice of the drawn lines, and ODS and OIS of the boundary benchmark. numpy only.

A network answers with one logit a pixel. Its exported file ends there too, without a sigmoid: the sigmoid is done here,
in float32. In an int8 graph it would only add a quantized output of 256 steps in [0, 1], where a logit needs its range
for nothing but its sign, and edges of low probability, which ODS looks at, would share one step.

    Dice = 2 |P & T| / (|P| + |T|),  P: probability above 1/2, T: the consensus of annotators; 1 where both are empty

A target uint8 (H, W, 1 + people) has T as its first channel (0 or 255), then what each annotator drew, one pixel wide;
where the data does not say that, the lines of the consensus as one annotator's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.tasks.boundary_match import LEVELS, counts
from pipeline.tasks.dense import POINTS, Dense, moments
from pipeline.thinning import thin

HALF = 0.5
DRAWN = 127  # of a target's 0 to 255


class Edges(Dense):
    """The metric is the mean Dice of the images. ODS and OIS are F-measures of all images together, at the best
    threshold for all, and at the best for each."""

    name = "edges"
    metric = "dice"
    title = "Dice"
    show = "fraction"
    unit = "pt"
    metrics: Mapping[str, str] = {"dice": "pt"}
    overlap = 32
    score_on = "centre"
    objective = ({"loss": "binary_cross_entropy", "weight": 1.0, "pos_weight": 10.0},)
    augments = ("flip", "dihedral", "brightness", "contrast", "saturation")
    baseline_name = "the gradient of the image"
    smoke: Mapping[str, Any] = {
        "data": {"name": "drawn-edges", "root": "", "patch": 32, "patches": 4, "consensus": 0.0}
    }

    @classmethod
    def outcomes(cls, outputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """`dice` float64 (N,); the benchmark's counts int64: `hit`, `found`, `recalled` (N, levels), `drawn` (N,)."""
        rows = [
            counts(sigmoid(output[..., 0]), drawings(target)) for output, target in zip(outputs, targets, strict=True)
        ]
        return {"dice": cls.scores(outputs, targets)} | {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    @classmethod
    def scores(cls, outputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([dice(*pair) for pair in zip(outputs, targets, strict=True)], np.float64)

    @classmethod
    def postprocess(cls, output: np.ndarray) -> np.ndarray:
        return np.rint(255 * np.nan_to_num(sigmoid(output))).astype(np.uint8)

    @classmethod
    def baseline(cls, image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """The largest of the channels' gradients: its steepest tenth counts as edges."""
        picture = np.pad(image.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
        down = picture[2:, 1:-1] - picture[:-2, 1:-1]
        along = picture[1:-1, 2:] - picture[1:-1, :-2]
        steepness = np.sqrt(down**2 + along**2).max(axis=2)
        limit = float(np.quantile(steepness, 0.9))
        return ((steepness - limit) / max(limit, 1.0))[..., None].astype(np.float32).reshape(shape)

    @classmethod
    def summary(cls, outcomes: Mapping[str, np.ndarray]) -> dict[str, Any]:
        best = best_level(outcomes)
        ods, ois = f_measure(outcomes, best), f_measure(outcomes, best_levels(outcomes))
        found = super().summary(outcomes)
        found["moments"]["ods"] = moments(pseudo_values(outcomes)) | {"unit": "fraction"}
        return found | {"ods": ods, "ois": ois, "ods_threshold": float(LEVELS[best])}

    @classmethod
    def comparisons(cls, subject: Mapping[str, np.ndarray], against: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Dice, and ODS by jackknife: pseudo-values of its difference at each one's own best threshold."""
        pseudo = POINTS * (pseudo_values(subject) - pseudo_values(against))
        return [
            *super().comparisons(subject, against),
            {"kind": "metric", "metric": "ods", "unit": "pt", **moments(pseudo)},
        ]

    @classmethod
    def target_picture(cls, target: np.ndarray) -> np.ndarray:
        return target[..., :1]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] of any logits, without overflow; NaN of what is not finite, which is no answer."""
    logits = np.asarray(logits, np.float32)
    half = np.exp(-np.abs(np.where(np.isfinite(logits), logits, 0)))
    value = np.where(logits >= 0, 1, half) / (1 + half)
    return np.where(np.isfinite(logits), value, np.float32(np.nan)).astype(np.float32)


def dice(output: np.ndarray, target: np.ndarray) -> float:
    """Dice of logits float32 (H, W, 1) against a target uint8 (H, W, 1 or more); 0 where a logit is not finite."""
    if not np.isfinite(output).all():
        return 0.0
    predicted, drawn = output[..., 0] > 0, target[..., 0] > DRAWN  # probability above 1/2
    both = int(predicted.sum()) + int(drawn.sum())
    return 2 * int((predicted & drawn).sum()) / both if both else 1.0


def drawings(target: np.ndarray) -> np.ndarray:
    """What each annotator drew, bool (people, H, W); the middle of the wide lines where nothing else is known."""
    if target.shape[2] == 1:
        return thin(target[..., 0] > DRAWN)[None]
    return np.moveaxis(target[..., 1:] > DRAWN, 2, 0)


def f_of(hit: Any, found: Any, recalled: Any, drawn: Any) -> np.ndarray:
    """F-measure 2PR / (P + R) of sums of counts; 0 where nothing matches, 1 where nothing is found nor drawn."""
    precision = hit / np.maximum(found, 1)
    recall = recalled / np.maximum(drawn, 1)
    value = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return np.where((np.asarray(found) == 0) & (np.asarray(drawn) == 0), 1.0, value)


def best_level(outcomes: Mapping[str, np.ndarray]) -> int:
    """The place in `LEVELS` at which all images together have the largest F-measure."""
    hit, found, recalled = (outcomes[key].sum(axis=0) for key in ("hit", "found", "recalled"))
    return int(np.argmax(f_of(hit, found, recalled, outcomes["drawn"].sum())))


def best_levels(outcomes: Mapping[str, np.ndarray]) -> np.ndarray:
    """As `best_level`, for each image alone: int64 (N,)."""
    each = f_of(outcomes["hit"], outcomes["found"], outcomes["recalled"], outcomes["drawn"][:, None])
    return each.argmax(axis=1)


def f_measure(outcomes: Mapping[str, np.ndarray], level: int | np.ndarray) -> float:
    """F-measure of all images together, cut at one place in `LEVELS`, or each at its own (N,)."""
    hit, found, recalled = (part.sum() for part in _at(outcomes, level))
    return float(f_of(hit, found, recalled, outcomes["drawn"].sum()))


def pseudo_values(outcomes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Jackknife pseudo-values of ODS, float64 (N,): n F - (n - 1) F without image i, moved so that their mean is ODS.

    The threshold stays that of all images: F is flat there. One image alone is its own.
    """
    level, n = best_level(outcomes), len(outcomes["drawn"])
    ods = f_measure(outcomes, level)
    if n == 1:
        return np.array([ods])
    parts = [*_at(outcomes, level), outcomes["drawn"]]
    without = f_of(*(part.sum() - part for part in parts))
    pseudo = n * ods - (n - 1) * without
    return pseudo - pseudo.mean() + ods


def _at(outcomes: Mapping[str, np.ndarray], level: int | np.ndarray) -> list[np.ndarray]:
    places = np.broadcast_to(np.asarray(level), len(outcomes["drawn"]))
    images = np.arange(len(places))
    return [outcomes[key][images, places] for key in ("hit", "found", "recalled")]


assert LEVELS[len(LEVELS) // 2] == HALF
