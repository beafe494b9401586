"""Calibration samples: real inputs of a net, handed out batch by batch, and refused when they say nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from exporters.artifact import ExportError, IOSpec
from exporters.base import check_feeds

LOOKED_AT = 64  # samples, for noise
FEWEST_PIXELS = 2048
LEAST_ALIKE = 0.1  # noise of 2,048 values reaches 0.05; scikit-learn's digits have 0.72, CIFAR-10 0.92


class CalibrationSamples:
    """Hands out calibration batches one at a time and watches what passes: count, hash, range, variety."""

    def __init__(self, batches: Iterable[np.ndarray], spec: IOSpec, *, where: str) -> None:
        self.count = 0
        self._batches = batches
        self._spec = spec
        self._where = where
        self._digest = hashlib.sha256()
        self._first: np.ndarray | None = None
        self._varied = False

    @property
    def sha256(self) -> str:
        """Of the samples in their order; how they are cut into batches does not matter."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The feeds of each batch, checked; one reading only. No sample at all is an `ExportError`."""
        for number, batch in enumerate(self._batches, start=1):
            where = f"{self._where}: calibration batch {number}"
            feeds = {self._spec.name: batch}
            check_feeds(feeds, (self._spec,), where=where)
            if not np.isfinite(batch).all():
                raise ExportError(f"{where}: holds NaN or infinity; look at the images and at mean and std")
            if self._first is None and len(batch):
                self._first = batch[0].copy()
            # One plain image is fair; only when all samples are the same do the ranges mean nothing.
            self._varied = self._varied or bool((batch != self._first).any())
            self.count += len(batch)
            self._digest.update(np.ascontiguousarray(batch).data)
            yield feeds
        if self.count == 0:
            raise ExportError(f"{self._where}: no calibration samples; give some from the training split")

    def check(self) -> None:
        """Refuse a set that says nothing about the range of real images."""
        if not self._varied:
            raise ExportError(
                f"{self._where}: all {self.count} calibration samples are the same; give different images, "
                "preprocessed as in training"
            )


def refuse_noise(batches: Iterable[np.ndarray], *, where: str) -> None:
    """Refuse images whose pixels are no more alike to their neighbours than to any other: random arrays, not images.

    `batches` are float (N, C, H, W); others, and fewer than `FEWEST_PIXELS` in all, say nothing. Up to `LOOKED_AT`
    samples are read. Ranges found on noise fit no image, and nothing later would say so.
    """
    chosen: list[np.ndarray] = []
    for batch in batches:
        chosen.append(batch)
        if sum(map(len, chosen)) >= LOOKED_AT:
            break
    if not chosen or chosen[0].ndim != 4 or sum(batch.size for batch in chosen) < FEWEST_PIXELS:
        return
    found = likeness(np.concatenate(chosen))
    if found is not None and found < LEAST_ALIKE:
        raise ExportError(
            f"{where}: the calibration samples look like noise: neighbouring pixels correlate by {max(found, 0):.2f}, "
            f"those of images by far more than {LEAST_ALIKE:g}; give real images, preprocessed as in training"
        )


def likeness(images: np.ndarray) -> float | None:
    """The largest correlation of pixels one or two places apart along a row or a column, over all of (N, C, H, W); None
    where there are too few places, or where every image is of one value."""
    spread = images.astype(np.float64) - images.mean(axis=(2, 3), keepdims=True, dtype=np.float64)
    variance = float(np.mean(spread**2))
    if min(images.shape[2:]) <= 2 or variance == 0:
        return None
    products = (
        spread.take(range(lag, spread.shape[axis]), axis) * spread.take(range(spread.shape[axis] - lag), axis)
        for lag in (1, 2)
        for axis in (2, 3)
    )
    return max(float(product.mean()) for product in products) / variance
