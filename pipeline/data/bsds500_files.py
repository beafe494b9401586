"""Files of BSDS500 (Arbelaez, Maire, Fowlkes, Malik, "Contour Detection and Hierarchical Image Segmentation", TPAMI
2011): photographs and the boundaries that several people drew into each, in the splits as published.

Two layouts are read, each from a folder or straight from a .zip:

    images/{train,val,test}/ID.jpg  with  boundary_mean/{train,val,test}/ID.png    (round(255 x mean over people))
    images/{train,val,test}/ID.jpg  with  groundTruth/{train,val,test}/ID.mat      (as published: BSDS500/data)

What each person drew stands in the .mat files. For the first layout it is read from their label maps, where they lie
beside it: `segmentations/{train,val,test}/ID.png`, one map under the other, in the same folder or in a second .zip
named after the first (`bsds500.zip`, `bsds500_segmentations.zip`).

Torch-free. Photographs alone (for super-resolution) need no boundaries.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.thinning import outlines

SPLITS = ("train", "val", "test")
PUBLISHED = {"train": 200, "val": 100, "test": 200}
PREFIXES = ("", "data/", "BSDS500/data/", "BSR/BSDS500/data/", "BSDS500/", "bsds500/")
PHOTOGRAPH = ".jpg"
BOUNDARIES = {"boundary_mean": ".png", "groundTruth": ".mat"}
MAPS = "segmentations"
LAYOUT = "images/train/*.jpg with boundary_mean/train/*.png or groundTruth/train/*.mat, and so for val and test"


@dataclass(frozen=True, kw_only=True)
class Bsds500:
    """A found copy. root: the folder or .zip; prefix: where `images/` lies in it, "" or ending in "/".

    names: split -> its photographs' names without ending, sorted. truth: `boundary_mean`, `groundTruth` or "" for none.
    maps: where the label maps of all people lie, for `boundary_mean`; None where there are none.
    """

    root: Path
    prefix: str
    names: dict[str, tuple[str, ...]]
    truth: str
    maps: Path | None = None

    def photographs(self, split: str) -> Iterator[np.ndarray]:
        """uint8 RGB (H, W, 3), one at a time, in the order of `names[split]`; 481x321 or 321x481 as published.

        Raises UserError naming the file that cannot be read.
        """
        return self._decoded(split, "images", PHOTOGRAPH, decode_photograph)

    def boundaries(self, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(mean, people) of each: uint8 (H, W), round(255 x the share of people who drew the pixel), and what each of
        them drew, bool (people, H, W), of 0 people where that is not known. As `photographs`.
        """
        if not self.truth:
            raise UserError(f"data.root: {str(self.root)!r} has photographs but no boundaries; expected {LAYOUT}")
        if self.truth == "groundTruth":
            for people in self._decoded(split, self.truth, ".mat", each_person):
                yield np.rint(255 * np.mean(people, axis=0)).astype(np.uint8), people
            return
        means = self._decoded(split, self.truth, ".png", decode_mean)
        if self.maps is None:
            for mean in means:
                yield mean, np.zeros((0, *mean.shape), bool)
            return
        stacks = replace(self, root=self.maps, prefix=self.prefix if self.maps == self.root else "")
        for mean, stack in zip(means, stacks._decoded(split, MAPS, ".png", decode_mean), strict=True):
            if stack.shape[1] != mean.shape[1] or stack.shape[0] % mean.shape[0]:
                raise UserError(f"{self.maps}: {MAPS} of {split}: {stack.shape} is no stack of {mean.shape}")
            yield mean, np.stack([outlines(labels) for labels in stack.reshape(-1, *mean.shape)])

    def fingerprint(self) -> str:
        """sha256 of the names and bytes of all files that are read, 64 hex digits."""
        digest = hashlib.sha256()
        with _reader(self.root) as read:
            for split in SPLITS:
                for name in self.names[split]:
                    for folder, ending in (("images", PHOTOGRAPH), *_truth(self.truth)):
                        content = read(f"{self.prefix}{folder}/{split}/{name}{ending}")
                        digest.update(f"{folder}/{split}/{name}{ending}\0{len(content)}\0".encode())
                        digest.update(content)
        if self.maps is not None:
            digest.update(b"people")
        return digest.hexdigest()

    def _decoded(self, split: str, folder: str, ending: str, decode: Any) -> Iterator[np.ndarray]:
        with _reader(self.root) as read:
            for name in self.names[split]:
                path = f"{self.prefix}{folder}/{split}/{name}{ending}"
                try:
                    yield decode(read(path))
                except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                    reason = str(error).partition("\n")[0] or type(error).__name__
                    raise UserError(f"{self.root}: {path}: {reason}; get BSDS500 again") from error


def find(root: str | Path) -> Bsds500:
    """Look for BSDS500 in a folder or .zip; the photographs are listed, none is decoded.

    Raises UserError, one line: nothing there, no such layout, a split without photographs, or one without its boundary.
    """
    path = Path(root)
    if not path.exists():
        raise UserError(f"data.root: {str(path)!r} does not exist; give the folder or .zip of BSDS500 ({LAYOUT})")
    if path.is_dir():
        return _found(path, lambda folder: _listed(path / folder))
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"data.root: {str(path)!r} is neither a folder nor a readable .zip of BSDS500") from error
    inside: dict[str, list[str]] = {}
    for member in members:
        folder, _, name = member.rpartition("/")
        inside.setdefault(folder, []).append(name)
    return _found(path, lambda folder: inside.get(folder, []))


def stamp(root: str | Path) -> dict[str, list[int]]:
    """Sizes and times of the .zip, or of every file of the folder's layout; empty where there is nothing."""
    path = Path(root)
    try:
        if path.is_file():
            beside = path.with_name(f"{path.stem}_{MAPS}.zip")
            files = [path, *([beside] if beside.is_file() else [])]
            return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
        found = find(path)
    except (OSError, UserError):
        return {}
    seen: dict[str, list[int]] = {}
    folders = ["images", *([found.truth] if found.truth else []), *([MAPS] if found.maps else [])]
    for folder in folders:
        for split in SPLITS:
            for file in sorted((path / found.prefix / folder / split).iterdir()):
                facts = file.stat()
                seen[f"{folder}/{split}/{file.name}"] = [facts.st_size, facts.st_mtime_ns]
    return seen


def decode_photograph(content: bytes) -> np.ndarray:
    """The bytes of an image file to uint8 RGB (H, W, 3) at its own size. Raises ValueError with a short reason."""
    return _pillow(content, "RGB")


def decode_mean(content: bytes) -> np.ndarray:
    """The bytes of a boundary_mean .png, uint8 (H, W)."""
    return _pillow(content, "L")


def each_person(content: bytes) -> np.ndarray:
    """The bytes of a groundTruth .mat to bool (people, H, W): who drew a boundary where. Raises ValueError."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise UserError("data.root: .mat files need scipy; install it with: pip install scipy") from error
    try:
        cells = loadmat(io.BytesIO(content))["groundTruth"].reshape(-1)
        people = [np.asarray(cell["Boundaries"].reshape(-1)[0]) for cell in cells]
        if any(drawn.ndim != 2 for drawn in people):
            raise ValueError("a boundary map is not a matrix")
        return np.stack(people) > 0
    except Exception as error:  # a parser of a foreign format may raise anything on broken bytes
        raise ValueError("no readable groundTruth{}.Boundaries of BSDS500 in it") from error


def _pillow(content: bytes, mode: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            return np.array(image.convert(mode))
    except Exception as error:  # as above
        raise ValueError("not a readable JPEG or PNG image") from error


def _found(root: Path, listed: Any) -> Bsds500:
    prefix = next((prefix for prefix in PREFIXES if listed(f"{prefix}images/train")), None)
    if prefix is None:
        raise UserError(f"data.root: no BSDS500 in {str(root)!r}; expected {LAYOUT}")
    names = {split: _stems(listed(f"{prefix}images/{split}"), PHOTOGRAPH) for split in SPLITS}
    for split in SPLITS:
        if not names[split]:
            raise UserError(f"data.root: {str(root)!r} has no {prefix}images/{split}/*{PHOTOGRAPH}; expected {LAYOUT}")
    truth = next((folder for folder in BOUNDARIES if listed(f"{prefix}{folder}/train")), "")
    for folder, ending in _truth(truth):
        for split in SPLITS:
            absent = sorted(set(names[split]) - set(_stems(listed(f"{prefix}{folder}/{split}"), ending)))
            if absent:
                lacking = f"{prefix}{folder}/{split}/{absent[0]}{ending}"
                raise UserError(
                    f"data.root: {str(root)!r} lacks {lacking} ({len(absent)} of {len(names[split])} photographs of "
                    f"{split} have no boundary); get BSDS500 again"
                )
    maps = root if listed(f"{prefix}{MAPS}/train") else None
    beside = root.with_name(f"{root.stem}_{MAPS}.zip")
    if maps is None and truth == "boundary_mean" and root.suffix == ".zip" and beside.is_file():
        maps = beside
    return Bsds500(root=root, prefix=prefix, names=names, truth=truth, maps=maps)


def _truth(folder: str) -> tuple[tuple[str, str], ...]:
    return ((folder, BOUNDARIES[folder]),) if folder else ()


def _stems(files: list[str], ending: str) -> tuple[str, ...]:
    return tuple(sorted(file[: -len(ending)] for file in files if file.endswith(ending) and not file.startswith(".")))


def _listed(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


@contextmanager
def _reader(root: Path) -> Iterator[Any]:
    """A function from a name inside `root` to its bytes."""
    if root.is_dir():
        yield functools.partial(_bytes, root)
    else:
        with zipfile.ZipFile(root) as archive:
            yield archive.read


def _bytes(root: Path, name: str) -> bytes:
    return (root / name).read_bytes()
