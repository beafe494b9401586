"""The views of a slice: view number k of every image, or every image's view in epoch k."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.data.augment import view_at
from pipeline.data.feed import view_batches
from pipeline.data.loader import batches
from pipeline.data.source import Images
from pipeline.data.view import View
from pipeline.recipe import Augment
from pipeline.teacher_table.key import Form


def slice_views(
    form: Form,
    images: Images,
    order: np.ndarray,
    number: int,
    *,
    spec: Augment,
    pool: np.ndarray,
    batch_size: int,
    workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[View]:
    """The views of slice `number` of the samples `order` (M,) int64, in that order.

    pool: int64 (N,), all samples, sorted. Yields views of at most `batch_size` images on `device` (the CPU); the epoch
    of a finite slice's is -1: it has none.
    """
    if form == "replay":
        classes = max(1, int(images.labels.max()) + 1)  # of labels that nobody reads here
        for view, _ in view_batches(
            images,
            order,
            batch_size,
            spec=spec,
            epoch=number,
            pool=pool,
            num_classes=classes,
            workers=workers,
            device=device,
        ):
            yield view
        return
    for ids, raw, _ in batches(images, order, batch_size, workers=workers, device=device):
        yield View(images=view_at(raw, np.full(len(ids), number), spec), sample_ids=ids, epoch=-1)


def single_views(
    form: Form,
    images: Images,
    samples: np.ndarray,
    numbers: np.ndarray,
    *,
    spec: Augment,
    pool: np.ndarray,
    device: torch.device | None = None,
) -> View:
    """One batch of views, each of a slice of its own: samples, numbers int64 (B,)."""
    parts = []
    for sample, number in zip(samples, numbers.tolist(), strict=True):
        one = np.array([sample])
        found = slice_views(form, images, one, number, spec=spec, pool=pool, batch_size=1, device=device)
        parts.append(next(found).images)
    joined = torch.cat(parts).contiguous(memory_format=torch.channels_last)
    return View(images=joined, sample_ids=samples, epoch=-1)
