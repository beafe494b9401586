"""Photographs and what a low-resolution camera would have seen of them: sources of the task `super-resolution`.

The input is made from the photograph, cut to a multiple of the scale, by the field's bicubic (`data.bicubic`), after a
Gaussian blur where the recipe asks for one. Three places that photographs come from:

- `photographs`: any folder. `train/`, `val/` and `test/` below `data.root` are taken as they are; without them the
  photographs are split by a hash of their path, `data.test` and `data.validation` of them, whole images each.
- `bsds500-photographs`: BSDS500's 200, 100 and 200 photographs, in a folder or .zip.
- `sample-photographs`: two photographs that come with scikit-learn, cut into squares; for smoke runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.bicubic import modcrop, shrink
from pipeline.data.pictures import Pair, Pairs, picture_source
from pipeline.data.source import Source
from pipeline.errors import UserError
from pipeline.recipe import Data

SCALE = 4
PATCH = 48  # of the input: 192 pixels of a photograph at x4, as most networks of the field are trained
PATCHES = 16  # of each photograph
SMALLEST = 32  # pixels on a side of a photograph that can be judged
COLOURS = 3
SPLITS = ("train", "val", "test")
OTHER_NAMES = {"val": ("val", "valid", "validation")}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Pairs whose targets have a fourth channel: 255 where the metric looks, 0 in a border of `border` pixels."""

    pairs: Pairs
    border: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        image, target = self.pairs[index]
        judged = np.zeros((*target.shape[:2], 1), np.uint8)
        judged[self.border : -self.border, self.border : -self.border] = 255
        return image, np.concatenate([target, judged], axis=2)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Pairs that are read and reduced whenever they are asked for, for folders too large for memory."""

    paths: tuple[Path, ...]
    scale: int
    sigma: float

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Pair:
        return pair(read(self.paths[index]), self.scale, self.sigma)


def pair(photograph: np.ndarray, scale: int, sigma: float) -> Pair:
    """(input uint8 (H, W, 3), target uint8 (scale * H, scale * W, 3)) of a photograph of any size."""
    target = np.ascontiguousarray(modcrop(photograph, scale))
    return shrink(target, scale, sigma=sigma), target


def open_photographs(data: Data) -> Source:
    """Source `photographs`. Every file is read once here; the pairs are kept when they take no more than
    `data.memory_limit_mb`, else a photograph is read again for each of its patches.

    Raises UserError: no folder, no photographs, too few to split, and one line for each that cannot be used.
    """
    root, scale, limit = Path(data.root), data.scale or SCALE, data.memory_limit_mb << 20
    listed = _listed(root, data)
    kept: dict[str, list[Pair]] = {split: [] for split in listed}
    digest, faults, size = hashlib.sha256(), list[str](), 0
    for split, paths in listed.items():
        for path in paths:
            try:
                photograph = read(path)
            except UserError as error:
                faults.append(str(error))
                continue
            digest.update(f"{split}\0{path.relative_to(root).as_posix()}\0{photograph.shape}\0".encode())
            digest.update(hashlib.sha256(np.ascontiguousarray(photograph).data).digest())
            size += photograph.size + photograph.size // scale**2
            if size <= limit:
                kept[split].append(pair(photograph, scale, data.blur))
    if faults:
        from pipeline.data.decode import refuse_faults

        refuse_faults(faults, files=sum(map(len, listed.values())), where="data.root")
    if size <= limit:
        return _source(data, kept, digest.hexdigest())
    streams = {split: Files(paths=tuple(paths), scale=scale, sigma=data.blur) for split, paths in listed.items()}
    return _source(data, streams, digest.hexdigest(), streamed=True)


def open_bsds500(data: Data) -> Source:
    """Source `bsds500-photographs`: 200 train, 100 validation, 200 test, of 481x321 or 321x481."""
    from pipeline.data.bsds500_files import find

    found = find(data.root)
    pairs = {
        split: [pair(photograph, data.scale or SCALE, data.blur) for photograph in found.photographs(split)]
        for split in SPLITS
    }
    return _source(data, pairs, found.fingerprint())


SQUARE = 104  # pixels: 4 rows and 6 columns of squares in either of scikit-learn's photographs
COLUMNS = {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}


def open_samples(data: Data) -> Source:
    """Source `sample-photographs`: 24 squares to train on, 8 for validation, 16 for test, from other parts of the same
    two photographs (scikit-learn's `china.jpg` and `flower.jpg`, CC BY 2.0)."""
    photographs = [read(path) for path in _samples(data.name)]
    squares = {
        split: [
            photograph[SQUARE * row : SQUARE * (row + 1), SQUARE * column : SQUARE * (column + 1)]
            for photograph in photographs
            for row in range(4)
            for column in columns
        ]
        for split, columns in COLUMNS.items()
    }
    pairs = {
        split: [pair(square, data.scale or SCALE, data.blur) for square in part] for split, part in squares.items()
    }
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(photograph).tobytes() for photograph in photographs))
    return _source(data, pairs, digest.hexdigest())


def _samples(name: str) -> list[Path]:
    """scikit-learn's photographs, found without importing it, which takes seconds."""
    from pipeline.models.find_module import find_module

    spec = find_module("sklearn.datasets")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    paths = [Path(folder) / "images" / file for folder in folders for file in ("china.jpg", "flower.jpg")]
    if not paths or not all(path.is_file() for path in paths):
        raise UserError(f"data.name = {name!r} needs scikit-learn; install it with: pip install scikit-learn")
    return paths


def stamp(data: Data) -> Any:
    """As cheap as possible: files' sizes and times, or the version of the package that holds them."""
    if data.name == "sample-photographs":
        from pipeline.data.digits import stamp as of_package

        return of_package(data)
    if data.name == "bsds500-photographs":
        from pipeline.data.bsds500_files import stamp as of_bsds500

        return of_bsds500(data.root)
    from pipeline.data.imagefolder import folder_stamp

    return folder_stamp(Path(data.root))


def _source(data: Data, pairs: Mapping[str, Pairs], content: str, *, streamed: bool = False) -> Source:
    scale, patch, per_image = data.scale or SCALE, data.patch or PATCH, data.patches or PATCHES
    settings = f"{content} {scale} {data.blur} {patch} {per_image}"
    return picture_source(
        name=data.name,
        where=f"data.root: {data.root!r}" if data.root else data.name,
        train=pairs["train"],
        validation=Judged(pairs=pairs["val"], border=scale),
        test=Judged(pairs=pairs["test"], border=scale),
        patch=patch,
        per_image=per_image,
        scale=scale,
        target_channels=COLOURS,
        fingerprint=hashlib.sha256(settings.encode()).hexdigest(),
        streamed=streamed,
    )


def _listed(root: Path, data: Data) -> dict[str, list[Path]]:
    """Split -> its photographs, sorted by path."""
    if not root.is_dir():
        raise UserError(f"data.root: no folder {str(root)!r}; give a folder of photographs")
    folders = {split: _folder(root, split) for split in SPLITS}
    found = {split: _images(folder) for split, folder in folders.items() if folder is not None}
    empty = [split for split, paths in found.items() if not paths]
    if empty:
        raise UserError(f"data.root: {str(folders[empty[0]])!r} holds no photograph; fill or remove it")
    if "train" not in found:
        found = {"train": _images(root)}
    if not found["train"]:
        raise UserError(f"data.root: no photographs in {str(root)!r}; .jpg, .jpeg, .png, .webp and .bmp are read")
    for split, share in (("test", data.test), ("val", data.validation)):
        if split not in found:
            found["train"], found[split] = _taken(found["train"], share, root)
    return {split: found[split] for split in SPLITS}


def _folder(root: Path, split: str) -> Path | None:
    return next((root / name for name in OTHER_NAMES.get(split, (split,)) if (root / name).is_dir()), None)


def _images(folder: Path) -> list[Path]:
    from pipeline.data.imagefolder import image_files

    return sorted(image_files(folder))


FEWEST_JUDGED = 2  # an interval needs two


def _taken(paths: Sequence[Path], share: float, root: Path) -> tuple[list[Path], list[Path]]:
    """(kept, taken): about `share` of the photographs, chosen by a hash of the path, so that adding some moves few."""
    count = max(FEWEST_JUDGED, round(len(paths) * share))
    if len(paths) < count + FEWEST_JUDGED:
        raise UserError(
            f"data.root: {str(root)!r} has too few photographs to keep {count} of {len(paths)} apart; add some, or put "
            "them into train/, val/ and test/"
        )

    def place(path: Path) -> bytes:
        return hashlib.sha256(path.relative_to(root).as_posix().encode("utf-8", "surrogateescape")).digest()

    chosen = set(sorted(paths, key=place)[:count])
    return [path for path in paths if path not in chosen], sorted(chosen)


def read(path: Path) -> np.ndarray:
    """uint8 RGB (H, W, 3), turned as its EXIF says. Raises UserError naming the file."""
    from pipeline.data.decode import decode_whole

    try:
        photograph = decode_whole(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    if min(photograph.shape[:2]) < SMALLEST:
        height, width = photograph.shape[:2]
        raise UserError(f"{path}: {height}x{width} pixels; a photograph needs {SMALLEST} on either side")
    return photograph
