"""Splits by seed, channel statistics, and the proof by hash that two sets share no image. Torch-free."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data import draws
from pipeline.data.source import Images, Source
from pipeline.errors import UserError

CHUNK = 512
HASH_BYTES = 16
SMALLEST_STD = 1 / 255  # one gray level, for a channel that never changes


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Sorted int64 index arrays. `train` indexes `source.train`, `test` `source.test`; `validation` the source's own
    validation images where it brings some, else `source.train` too."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def make_splits(source: Source, *, validation: float, seed: int) -> Splits:
    """Carve the share `validation` out of train, class by class; a pure function of the labels, share and seed.

    A source that brings a validation split keeps it. Raises UserError when no class has an image to spare.
    """
    if source.validation is not None:
        sizes = (len(source.train), len(source.validation), len(source.test))
        train, own, test = (np.arange(size, dtype=np.int64) for size in sizes)
        return Splits(train=train, validation=own, test=test)
    kept, taken = stratified(source.train.labels, validation, seed=seed, stream=draws.VALIDATION)
    if not len(taken):
        raise UserError(
            f"data: {len(kept)} training images in {len(source.class_names)} classes leave none for validation; "
            "give at least one class two or more"
        )
    return Splits(train=kept, validation=taken, test=np.arange(len(source.test), dtype=np.int64))


def stratified(labels: np.ndarray, share: float, *, seed: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Split places 0..N-1 by labels (N,) into (kept, taken), sorted int64: about `share` of each class is taken.

    Of a class with two images or more at least one is taken and one kept; of a class with one, none is taken.
    """
    shuffled = draws.shuffled(np.arange(len(labels)), seed, 0, stream)
    return stratified_by_order(labels, share, shuffled)


def stratified_by_order(labels: np.ndarray, share: float, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `stratified`, taking those that stand first in `order` (N,), a permutation of the places."""
    taken = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        count = min(max(round(len(members) * share), 1), len(members) - 1)
        taken[members[:count]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def calibration_indices(
    splits: Splits, labels: np.ndarray, n: int, *, seed: int, images: Images, exclude: Collection[bytes]
) -> np.ndarray:
    """`n` training samples for calibration, int64 (n,), classes in turn, so that any first part is balanced too.

    An image whose origin's hash is in `exclude` (the gate set's), or that was drawn already, is passed over. Raises
    UserError when fewer than `n` remain.
    """
    forbidden, drawn = set(exclude), set[bytes]()
    chosen: list[int] = []
    candidates = _classes_in_turn(draws.shuffled(splits.train, seed, 0, draws.CALIBRATION), labels)
    for start in range(0, len(candidates), CHUNK):
        part = candidates[start : start + CHUNK]
        hashes = zip(part, image_hashes(images, part), origin_hashes(images, part), strict=True)
        for index, digest, origin in hashes:
            if origin not in forbidden and digest not in drawn:
                drawn.add(digest)
                chosen.append(int(index))
                if len(chosen) == n:
                    return np.array(chosen, dtype=np.int64)
    if not chosen:
        raise UserError(
            f"quantize.samples = {n}: every training image stands in the test split too, so none is left to calibrate "
            "with; give training images of their own, or leave int8 out with quantize = false"
        )
    raise UserError(
        f"quantize.samples = {n}: only {len(chosen)} of {len(splits.train)} training images are distinct and not in "
        f"the test split; set quantize.samples to {len(chosen)} or less, or give more images"
    )


def _classes_in_turn(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`order` rearranged: the first of each class, then the second of each, and so on."""
    seen: Counter[int] = Counter()
    turns = np.empty(len(order), dtype=np.int64)
    for place, label in enumerate(labels[order].tolist()):
        turns[place] = seen[label]
        seen[label] += 1
    return order[np.argsort(turns, kind="stable")]


def image_hashes(images: Images, indices: np.ndarray | None = None) -> list[bytes]:
    """blake2b-128 of each image's pixels, 16 bytes each, in the order of `indices` (all, when None)."""
    indices = np.arange(len(images)) if indices is None else indices
    known: Callable[[np.ndarray], list[bytes]] | None = getattr(images, "hashes", None)
    if known is not None:  # streamed images were hashed while they were checked
        return known(indices)
    return [pixel_hash(image) for chunk in _chunks(images, indices) for image in chunk]


def origin_hashes(images: Images, indices: np.ndarray) -> list[bytes]:
    """As `image_hashes`, of the whole image that each sample is or is cut from: two patches of one picture are kin."""
    known: Callable[[np.ndarray], list[bytes]] | None = getattr(images, "origins", None)
    return known(indices) if known is not None else image_hashes(images, indices)


def pixel_hash(image: np.ndarray) -> bytes:
    """16 bytes for one C-contiguous image (H, W, C) uint8; images of different shapes are never compared."""
    return hashlib.blake2b(image.data, digest_size=HASH_BYTES).digest()


def duplicates(hashes: Collection[bytes], others: Collection[bytes]) -> int:
    """How many of `hashes`, repeats counted, are among `others`."""
    known = set(others)
    return sum(digest in known for digest in hashes)


def channel_stats(images: Images, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, float64 (C,) on the scale 0 to 1, over `indices` (N,).

    Exact: pixels are counted by value, one chunk of images at a time. A single constant channel gets one gray level
    as its deviation. Raises UserError when every channel is constant.
    """
    channels = images.shape[2]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for chunk in _chunks(images, indices):
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1)
    if not variance.any():
        raise UserError(f"data: every pixel of all {len(indices)} training images has the same value; check the source")
    return mean, np.maximum(np.sqrt(variance), SMALLEST_STD)


def _chunks(images: Images, indices: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(indices), CHUNK):
        yield images.load(np.asarray(indices[start : start + CHUNK], dtype=np.int64))
