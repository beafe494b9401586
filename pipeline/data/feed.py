"""Batches as a training loop takes them: augmented, mixed where the recipe mixes, and with their labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.data.augment import target_views, views
from pipeline.data.loader import batches
from pipeline.data.mixing import mix, mixes, partners, soft_labels
from pipeline.data.source import Images
from pipeline.data.view import View
from pipeline.recipe import Augment


def view_batches(
    images: Images,
    order: np.ndarray,
    batch_size: int,
    *,
    spec: Augment,
    epoch: int,
    pool: np.ndarray,
    num_classes: int,
    workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[tuple[View, torch.Tensor]]:
    """The views of `order` (N,) int64 in this epoch, in that order; the last batch may be smaller.

    pool: int64 (N,), the sorted training samples, from which partners for mixing are drawn; the whole of it, also where
    `order` is one process's share. Yields (view, target), tensors on `device` (the CPU): the target is int64 (B,), -1
    for an image without a label, or, with mixing, the labels by their shares: float32 (B, num_classes); where the
    images have target pictures, these in the same view, float32 (B, C', H', W') in [0, 1]. With mixing every image is
    loaded twice an epoch, once as a partner. Raises UserError as `batches` and `views` do.
    """
    order = np.asarray(order, dtype=np.int64)
    if not mixes(spec):
        for ids, raw, target in batches(images, order, batch_size, workers=workers, device=device):
            answer = target if target.ndim == 1 else target_views(target, ids, epoch, spec).to(torch.float32).div_(255)
            yield View(images=views(raw, ids, epoch, spec), sample_ids=ids, epoch=epoch), answer
        return
    # Each batch is loaded and augmented together with its partners, by the same workers.
    cuts = range(batch_size, len(order), batch_size)
    firsts, others = np.split(order, cuts), np.split(partners(order, pool, epoch, spec), cuts)
    both = np.concatenate([part for pair in zip(firsts, others, strict=True) for part in pair])
    for ids, raw, labels in batches(images, both, 2 * batch_size, workers=workers, device=device):
        count = len(ids) // 2
        pixels = views(raw, ids, epoch, spec)
        mixed, weight = mix(pixels[:count], pixels[count:], ids[:count], epoch, spec)
        view = View(images=mixed, sample_ids=ids[:count], epoch=epoch, partner_ids=ids[count:], partner_weight=weight)
        yield view, soft_labels(labels[:count], labels[count:], weight, num_classes)
