"""What every data source gives: uint8 images, labels, class names and a fingerprint of the content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pipeline.data.slices import Column
from pipeline.errors import UserError

FEWEST_CLASSES = 2


class Images(Protocol):
    """Labelled images of one shape, in memory or on disk.

    labels: int64 (N,), in 0..classes-1, or -1 for an image without a label. shape: (H, W, C), C is 1 or 3 (RGB).
    streamed: True when `load` reads files, so that worker processes pay.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def streamed(self) -> bool: ...

    def __len__(self) -> int: ...

    def load(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C), C-contiguous, for indices (B,) int64; the caller may write into it."""
        ...


def load_both(images: Images, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples uint8 (B, H, W, C) with their targets: labels int64 (B,), or pictures uint8 (B, s*H, s*W, C')."""
    both: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = getattr(images, "both", None)
    return both(indices) if both is not None else (images.load(indices), images.labels[indices])


class InMemory:
    """Images kept as one uint8 array (N, H, W, C), with labels int64 (N,)."""

    streamed = False

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        assert images.dtype == np.uint8 and images.ndim == 4, f"{images.dtype} {images.shape}"
        assert labels.dtype == np.int64 and labels.shape == images.shape[:1], f"{labels.dtype} {labels.shape}"
        self.images = np.ascontiguousarray(images)
        self.labels = labels

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.images)

    def load(self, indices: np.ndarray) -> np.ndarray:
        return self.images.take(indices, axis=0)


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened data set. The test split is read by evaluation alone; validation is carved from train, unless the
    source brings it (`validation`), as those whose targets are pictures do (`pipeline.data.pictures`).

    fingerprint: sha256 of the content (pixels and labels; for folders, paths and file bytes), 64 hex digits.
    slices: columns of the test images, by name.
    mean, std: what images are normalised with, one value a channel on the scale 0 to 1; None: as training images have.
    """

    name: str
    class_names: tuple[str, ...]
    train: Images
    test: Images
    fingerprint: str
    validation: Images | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    slices: Mapping[str, Column] = field(default_factory=dict)

    @property
    def target_shape(self) -> tuple[int, int, int] | None:
        """(s*H, s*W, C') of a training target that is a picture; None where it is a label."""
        return getattr(self.train, "target_shape", None)


def array_source(
    *,
    name: str,
    where: str,
    class_names: Sequence[str] | None,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    image_size: int = 0,
) -> Source:
    """A source of arrays: images uint8 (N, H, W, C) with labels int64 (N,), a pair each for train and test.

    class_names: None names the classes by their numbers. image_size: side to resize to, 0 keeps the images.
    `where` begins the messages. Raises UserError as `check_labels` does.
    """
    count = len(class_names) if class_names is not None else int(train[1].max(initial=-1)) + 1
    if count > len(train[1]) > 0:
        raise UserError(f"{where}: train: {len(train[1])} images cannot hold all of {count} classes; check the labels")
    names = tuple(class_names) if class_names is not None else tuple(str(index) for index in range(count))
    check_labels(train[1], names, where=f"{where}: train")
    check_labels(test[1], names, where=f"{where}: test", all_present=False)
    digest = hashlib.sha256()
    for images, labels in (train, test):
        digest.update(repr((images.shape, labels.shape)).encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(np.ascontiguousarray(labels.astype("<i8")).data)
    digest.update("\0".join(names).encode())
    if image_size:
        from pipeline.data.resize import resize_images

        train = (resize_images(train[0], image_size), train[1])
        test = (resize_images(test[0], image_size), test[1])
    return Source(
        name=name,
        class_names=names,
        train=InMemory(*train),
        test=InMemory(*test),
        fingerprint=digest.hexdigest(),
    )


def check_labels(labels: np.ndarray, names: Sequence[str], *, where: str, all_present: bool = True) -> None:
    """Refuse labels that no classifier can be trained on or judged by.

    Raises UserError, one line: no images, labels out of range, one class only, repeated names, classes without images.
    """
    if not len(labels):
        raise UserError(f"{where}: no images; a data set needs some in train and in test")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise UserError(f"{where}: label {lowest}; labels count from 0")
    if highest >= len(names):
        raise UserError(f"{where}: label {highest}, but there are {len(names)} classes (0 to {len(names) - 1})")
    if len(names) < FEWEST_CLASSES:
        raise UserError(f"{where}: one class only ({names[0]!r}); a classifier needs two or more")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise UserError(f"{where}: class name {repeated[0]!r} is used twice")
    if all_present:
        absent = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
        if len(absent):
            shown = ", ".join(repr(names[index]) for index in absent[:5]) + (", …" if len(absent) > 5 else "")
            raise UserError(f"{where}: no image of class {shown}; add some or number the classes without gaps")
