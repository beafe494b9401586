"""Any folder of class folders: `root/train/CLASS/*.jpg` with `root/test` (or `val`), or `root/CLASS/*.jpg` alone."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.slices import fingerprint, of_folder
from pipeline.data.slices import stamp as slices_stamp
from pipeline.data.source import FEWEST_CLASSES, Images, InMemory, Source
from pipeline.errors import UserError
from pipeline.recipe import Data

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TRAIN_FOLDER = "train"
TEST_FOLDERS = ("test", "val", "validation")
DEPTH_OF_LINKS = 2  # levels below a root in which links to folders are followed: split and class folders


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Image files under `root`, sorted: their paths relative to it with `/`, their labels int64 (N,)."""

    root: Path
    names: tuple[str, ...]
    labels: np.ndarray

    def part(self, places: np.ndarray) -> Listing:
        return Listing(root=self.root, names=tuple(self.names[place] for place in places), labels=self.labels[places])


def open_source(data: Data) -> Source:
    """Images as uint8 RGB (H, W = `data.image_size`), shorter side resized and the centre cut out.

    Every file is read and decoded once here, by `data.workers` threads. They are kept when they take no more than
    `data.memory_limit_mb`, else they are streamed. Without a test folder the share `data.test` of each class is kept
    for it, chosen by a hash of the path, so that adding files moves few others.

    Raises UserError: no folder, no class folders, an empty one, one class only, a test class unknown in train; and for
    unreadable images one line each, all of them at once.
    """
    from pipeline.data.decode import FolderImages, refuse_faults, scan

    root = Path(data.root)
    names, train, test = _splits(root, data)
    files = len(train.names) + len(test.names)
    keep = files * data.image_size**2 * 3 <= data.memory_limit_mb << 20
    scanned = [scan(part, data.image_size, threads=data.workers, keep_pixels=keep) for part in (train, test)]
    refuse_faults([fault for part in scanned for fault in part.faults], files=files, where="data.root")
    digest = hashlib.sha256("\0".join(names).encode())
    parts: list[Images] = []
    for split, listing, found in zip((b"train", b"test"), (train, test), scanned, strict=True):
        for name, label, file_hash in zip(listing.names, listing.labels, found.file_hashes, strict=True):
            digest.update(b"%s\0%s\0%d\0%s" % (split, name.encode("utf-8", "surrogateescape"), label, file_hash))
        if found.pixels is not None:
            parts.append(InMemory(found.pixels, listing.labels))
        else:
            parts.append(FolderImages(listing, data.image_size, found.pixel_hashes, threads=data.workers))
    slices = of_folder(root, test.names)
    return Source(
        name=data.name,
        class_names=names,
        train=parts[0],
        test=parts[1],
        fingerprint=fingerprint(digest.hexdigest(), slices),
        slices=slices,
    )


def stamp(data: Data) -> Any:
    """Number of image files and one hash over their paths, sizes and times; None when there is no folder."""
    found, slices = folder_stamp(Path(data.root)), slices_stamp(Path(data.root))
    return found if slices is None else {"images": found, "slices": slices}


def folder_stamp(root: Path) -> Any:
    """As `stamp`, of any folder."""
    if not root.is_dir():
        return None
    digest, count = hashlib.sha256(), 0
    for path in image_files(root, depth_of_links=DEPTH_OF_LINKS):
        name = path.relative_to(root).as_posix().encode("utf-8", "surrogateescape")
        try:
            facts = path.stat()
            digest.update(b"%s\0%d\0%d\0" % (name, facts.st_size, facts.st_mtime_ns))
        except OSError:  # a broken link: opening the source names it
            digest.update(b"%s\0broken\0" % name)
        count += 1
    return {"files": count, "sha256": digest.hexdigest()}


def _splits(root: Path, data: Data) -> tuple[tuple[str, ...], Listing, Listing]:
    """Class names, train and test listings."""
    from pipeline.data.split import stratified_by_order

    if not root.exists():
        raise UserError(f"data.root: no folder {str(root)!r}; give the folder that holds the class folders")
    if not root.is_dir():
        raise UserError(f"data.root: {str(root)!r} is a file; 'imagefolder' needs a folder ('arrays' takes .npz files)")
    train_root = root / TRAIN_FOLDER if (root / TRAIN_FOLDER).is_dir() else root
    names = _class_folders(train_root)
    listing = _listing(root, train_root, names)
    test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if train_root != root and test_root is not None:
        unknown = sorted(set(_class_folders(test_root)) - set(names))
        if unknown:
            raise UserError(
                f"data.root: {str(test_root / unknown[0])!r} is a class that {str(train_root)!r} does not have"
            )
        present = tuple(name for name in names if (test_root / name).is_dir())
        return names, listing, _listing(root, test_root, names, only=present)
    order = sorted(range(len(listing.names)), key=lambda place: _path_hash(listing.names[place]))
    kept, taken = stratified_by_order(listing.labels, data.test, np.array(order, dtype=np.int64))
    if not len(taken):
        raise UserError(f"data.root: {str(train_root)!r} has one image a class; none is left for a test split")
    return names, listing.part(kept), listing.part(taken)


def _class_folders(root: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(
            f"data.root: {str(root)!r} has no class folders; put the images of each class in a folder of its own"
        )
    return tuple(names)


def _listing(root: Path, part: Path, names: tuple[str, ...], *, only: tuple[str, ...] | None = None) -> Listing:
    """All images of the classes; an empty class folder is refused, and so is a single class."""
    paths: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, name in enumerate(names):
        if only is not None and name not in only:
            continue
        found = [path.relative_to(root).as_posix() for path in image_files(part / name)]
        if not found:
            empty.append(name)
        paths += found
        labels += [label] * len(found)
    kinds = ", ".join(SUFFIXES)
    if not paths:
        raise UserError(f"data.root: no images under {str(part)!r}; its class folders hold no {kinds} file")
    if empty:
        raise UserError(f"data.root: class folder {str(part / empty[0])!r} holds no {kinds} file; fill or remove it")
    if len(names) < FEWEST_CLASSES:
        raise UserError(f"data.root: {str(part)!r} has one class only ({names[0]!r}); a classifier needs two or more")
    return Listing(root=root, names=tuple(paths), labels=np.array(labels, dtype=np.int64))


def image_files(folder: Path, *, depth_of_links: int = 0) -> list[Path]:
    """Image files under `folder` at any depth, sorted; hidden ones are left out.

    Links to folders are followed only in the first `depth_of_links` levels, where split and class folders lie, so that
    a link to a parent cannot turn into an endless walk.
    """
    found: list[Path] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=depth_of_links > 0):
            found += image_files(Path(entry.path), depth_of_links=max(0, depth_of_links - 1))
        elif entry.name.lower().endswith(SUFFIXES) and not entry.is_dir():
            found.append(Path(entry.path))
    return found


def _path_hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()
