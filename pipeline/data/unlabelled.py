"""A folder of images without labels, cut to the shape of the labelled ones, that join them in distillation alone."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.imagefolder import DEPTH_OF_LINKS, SUFFIXES, TRAIN_FOLDER, Listing, folder_stamp, image_files
from pipeline.data.source import Images, InMemory
from pipeline.errors import UserError
from pipeline.recipe import Data

KEY = "data.unlabelled"
NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """The opened folder: its images, sorted by path, with the label -1, and sha256 of paths and file bytes."""

    images: Images
    fingerprint: str


class Joined:
    """Two sets of images as one, read wherever they lie; `Images` with those of `first` at the places they had."""

    def __init__(self, first: Images, second: Images) -> None:
        self.first, self.second = first, second
        self.labels = np.concatenate([first.labels, second.labels])
        self.shape, self.streamed = first.shape, first.streamed or second.streamed

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C), as the part that holds each index gives it."""
        indices = np.asarray(indices, dtype=np.int64)
        later = indices >= len(self.first)
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        images[~later] = self.first.load(indices[~later])
        images[later] = self.second.load(indices[later] - len(self.first))
        return images


@functools.lru_cache(maxsize=1)
def with_unlabelled(images: Images, extra: Images) -> Images:
    """`images` with `extra` after them: index len(images) + k is the k-th of `extra`.

    Two sets in memory become one array, which a GPU can keep; it is made once for all stages of a process.
    """
    assert images.shape == extra.shape, f"{images.shape} and {extra.shape}"
    if isinstance(images, InMemory) and isinstance(extra, InMemory):
        return InMemory(np.concatenate([images.images, extra.images]), np.concatenate([images.labels, extra.labels]))
    return Joined(images, extra)


def open_unlabelled(data: Data, shape: tuple[int, int, int]) -> Unlabelled:
    """Every image under `data.unlabelled`, at any depth, as uint8 of `shape` (H, W, C), which the labelled ones have.

    Resized, cut and kept or streamed as `imagefolder` does it; gray data sets get the luma of colour files. Raises
    UserError: no folder, one without images, one that is a class of the data set, a data set of images that are not
    square, and for unreadable images one line each.
    """
    from pipeline.data.decode import FolderImages, refuse_faults, scan

    root = Path(data.unlabelled)
    _check(root, data, shape)
    side, channels = shape[0], shape[2]
    paths = image_files(root, depth_of_links=DEPTH_OF_LINKS)
    if not paths:
        raise UserError(f"{KEY}: no images under {str(root)!r}; it holds no {', '.join(SUFFIXES)} file at any depth")
    labels = np.full(len(paths), NO_LABEL, dtype=np.int64)
    listing = Listing(root=root, names=tuple(path.relative_to(root).as_posix() for path in paths), labels=labels)
    keep = len(paths) * side**2 * channels <= data.memory_limit_mb << 20
    found = scan(listing, side, threads=data.workers, keep_pixels=keep, channels=channels)
    refuse_faults(found.faults, files=len(paths), where=KEY)
    digest = hashlib.sha256()
    for name, file_hash in zip(listing.names, found.file_hashes, strict=True):
        digest.update(b"%s\0%s" % (name.encode("utf-8", "surrogateescape"), file_hash))
    if found.pixels is not None:
        images: Images = InMemory(found.pixels, labels)
    else:
        images = FolderImages(listing, side, found.pixel_hashes, threads=data.workers, channels=channels)
    return Unlabelled(images=images, fingerprint=digest.hexdigest())


def unlabelled_stamp(data: Data) -> Any:
    """Number, paths, sizes and times of the image files; None when there is no folder."""
    return folder_stamp(Path(data.unlabelled))


def unseen(images: Images, held_out: Collection[bytes]) -> np.ndarray:
    """Places, int64 and sorted, of the images that are not among `held_out`, by the hash of their pixels.

    Raises UserError when none is left.
    """
    from pipeline.data.split import image_hashes

    known = set(held_out)
    kept = np.flatnonzero([digest not in known for digest in image_hashes(images)])
    if not len(kept):
        raise UserError(
            f"{KEY}: all {len(images)} images stand in the test or validation split too, which distillation must not "
            "see; give other images"
        )
    return kept


def _check(root: Path, data: Data, shape: tuple[int, int, int]) -> None:
    if not root.exists():
        raise UserError(f"{KEY}: no folder {str(root)!r}; give a folder of images, or leave the key out")
    if not root.is_dir():
        raise UserError(f"{KEY}: {str(root)!r} is a file; give a folder of images")
    if shape[0] != shape[1]:
        raise UserError(
            f"{KEY}: images of {data.name!r} have {shape[0]}x{shape[1]} pixels, and a folder's images are cut to "
            "squares; set data.image_size to make all of them squares"
        )
    if data.name == "imagefolder":
        train = Path(data.root) / TRAIN_FOLDER
        classes = train if train.is_dir() else Path(data.root)
        if root.resolve().parent == classes.resolve():
            raise UserError(
                f"{KEY}: {str(root)!r} is taken for a class, as it lies among the class folders of data.root; "
                "move it elsewhere"
            )
