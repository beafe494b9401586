"""Columns that say more of each test image (light, site, camera): the gate may look at each of their values alone.

imagefolder: `slices.csv` in the root, with a column `path` relative to it and any further columns.
arrays: arrays `slice_NAME`, one value a test image.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError

FILE, PREFIX = "slices.csv", "slice_"
MOST_VALUES = 1_000


@dataclass(frozen=True, kw_only=True)
class Column:
    """`codes` int32 (N,), the place of each test image's value in `names`; -1 for an image without one."""

    names: tuple[str, ...]
    codes: np.ndarray


def column_of(values: Sequence[str], where: str) -> Column:
    """A column of texts; an empty one is no value. Raises UserError for one that has too many values to be slices."""
    names = tuple(sorted({value for value in values if value}))
    if not names:
        raise UserError(f"{where}: no image has a value; fill or remove it")
    if len(names) > MOST_VALUES:
        raise UserError(f"{where}: {len(names):,} different values; slices have at most {MOST_VALUES:,}")
    places = {name: place for place, name in enumerate(names)}
    return Column(names=names, codes=np.array([places.get(value, -1) for value in values], np.int32))


def of_folder(root: Path, images: Sequence[str]) -> dict[str, Column]:
    """The columns of `root`/slices.csv for `images`, paths relative to `root`; nothing where there is no such file.

    Raises UserError, one line: not a table, no path column, a path twice, images without a row.
    """
    path = root / FILE
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table that can be read ({error}); save it as CSV in UTF-8") from None
    if not table or "path" not in table[0] or len(table[0]) < 2:
        raise UserError(f"{path}: needs a column 'path' and one or more columns with values")
    rows = {str(row["path"]): row for row in table}
    if len(rows) != len(table):
        raise UserError(f"{path}: {len(table) - len(rows)} paths stand in it twice; keep one row an image")
    absent = [name for name in images if name not in rows]
    if absent:
        raise UserError(f"{path}: {len(absent):,} of {len(images):,} test images have no row, such as {absent[0]!r}")
    columns = [key for key in table[0] if key and key != "path"]
    return {
        key: column_of([(rows[name].get(key) or "").strip() for name in images], f"{path}: column {key!r}")
        for key in columns
    }


def of_arrays(arrays: Mapping[str, np.ndarray], count: int, where: str) -> dict[str, Column]:
    """The columns among `arrays`, those named slice_NAME. Raises UserError for one that is no value an image."""
    found = {}
    for key in sorted(key for key in arrays if key.startswith(PREFIX) and len(key) > len(PREFIX)):
        values = arrays[key]
        if values.shape != (count,) or values.dtype.kind not in "iubU":
            got = f"dtype {values.dtype} and shape {values.shape}"
            raise UserError(
                f"{where}: {key} has {got}; expected a whole number or text for each of {count} test images"
            )
        found[key.removeprefix(PREFIX)] = column_of([str(value) for value in values], f"{where}: {key}")
    return found


def fingerprint(base: str, columns: Mapping[str, Column]) -> str:
    """`base`, a source's fingerprint, with its columns; the same where there are none."""
    if not columns:
        return base
    digest = hashlib.sha256(base.encode())
    for key, column in sorted(columns.items()):
        digest.update("\0".join([key, *column.names]).encode())
        digest.update(np.ascontiguousarray(column.codes.astype("<i4")).data)
    return digest.hexdigest()


def stamp(root: Path) -> Any:
    """Size and time of `root`/slices.csv; None where there is none."""
    try:
        facts = (root / FILE).stat()
    except OSError:
        return None
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
