"""Calibration samples: real inputs of a net, handed out batch by batch, and refused when they say nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from exporters.artifact import ExportError, IOSpec
from exporters.base import check_feeds


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
