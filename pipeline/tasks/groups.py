"""Per-sample outcomes of a classifier, counted by class, by slice and by confidence: tables that a gate judges."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

BINS = 15
LABEL, SLICE = "label", "slice_"


def by_column(subject: Mapping[str, np.ndarray], against: Mapping[str, np.ndarray]) -> dict[str, list[list[int]]]:
    """Column -> a row a value: how many both got right, only `subject`, only `against`, neither, and equal answers.

    Columns are `label` and every `slice_NAME` of the outcomes of `subject`, integers (N,) that count from 0; a sample
    of value -1 has none.
    """
    a, b = subject["correct"], against["correct"]
    same = subject["prediction"] == against["prediction"]
    found = {}
    for key in [key for key in subject if key == LABEL or key.startswith(SLICE)]:
        codes = np.asarray(subject[key], np.int64)
        known = codes >= 0
        size = int(codes.max(initial=-1)) + 1
        masks = (a & b, a & ~b, ~a & b, ~a & ~b, same)
        counts = [np.bincount(codes[known & mask], minlength=size) for mask in masks]
        found[key.removeprefix(SLICE)] = np.stack(counts, axis=1).tolist()
    return found


def reliability(outcomes: Mapping[str, np.ndarray]) -> list[list[float]]:
    """A row a bin of confidence that is not empty: [n, mean gap, sum of squares about it].

    The gap of a sample is its `confidence` (float (N,)) minus whether it is `correct` (bool (N,)). A confidence that
    is not finite counts as 1: it must not look well calibrated.
    """
    confidence = np.nan_to_num(np.asarray(outcomes["confidence"], np.float64), nan=1.0, posinf=1.0, neginf=1.0)
    gap = confidence - np.asarray(outcomes["correct"], np.float64)
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    rows = []
    for b in range(BINS):
        inside = gap[place == b]
        if len(inside):
            rows.append([len(inside), float(inside.mean()), float(((inside - inside.mean()) ** 2).sum())])
    return rows
