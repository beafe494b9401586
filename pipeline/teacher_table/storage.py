"""A table on disk: header.json, shards of whole slices as raw little-endian float16, index.json with their hashes.

    header.json           key, widths, sizes: written first
    shard-00003.f16       (slices, samples, width) float16: present only when whole
    shard-00003.json      of a shard in the making or not yet in the index: rows done and the sha256 of exactly these
    index.json            size and sha256 of every shard: written last, so a table that has it is finished

A row is all outputs of one view, in the header's order. A shard grows by whole rows in `shard-00003.f16.partial`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.atomic import disk_errors, format_bytes, sync, write_json
from pipeline.errors import UserError
from pipeline.manifest import sha256_file
from pipeline.teacher_table.key import Key, differences

HEADER, INDEX = "header.json", "index.json"
SCHEMA_VERSION = 1
SHARD_BYTES = 256 << 20
FEWEST_SHARDS = 16  # so that the ranks of a node all have something to do
ITEM_BYTES = 2
AGAIN = "copy the table again, or delete the folder to have it built anew"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of a table. outputs: name -> width, in the order in which they stand in a row."""

    samples: int
    slices: int
    outputs: Mapping[str, int]
    slices_per_shard: int

    @classmethod
    def of(cls, *, samples: int, slices: int, outputs: Mapping[str, int]) -> Layout:
        """Shards of at most `SHARD_BYTES`, or of one slice where that is larger."""
        assert samples > 0 and slices > 0 and outputs, (samples, slices, outputs)
        fitting = SHARD_BYTES // (samples * sum(outputs.values()) * ITEM_BYTES)
        shared = -(-slices // FEWEST_SHARDS)
        return cls(samples=samples, slices=slices, outputs=dict(outputs), slices_per_shard=max(1, min(fitting, shared)))

    @property
    def width(self) -> int:
        return sum(self.outputs.values())

    @property
    def row_bytes(self) -> int:
        return self.width * ITEM_BYTES

    @property
    def nbytes(self) -> int:
        return self.slices * self.samples * self.row_bytes

    @property
    def shards(self) -> int:
        return -(-self.slices // self.slices_per_shard)

    def slices_of(self, shard: int) -> range:
        first = shard * self.slices_per_shard
        return range(first, min(self.slices, first + self.slices_per_shard))

    def shard_bytes(self, shard: int) -> int:
        return len(self.slices_of(shard)) * self.samples * self.row_bytes


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.f16"


def header_of(key: Key, layout: Layout, teacher_accuracy: float | None) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "key": key.identity(),
        "samples": layout.samples,
        "slices": layout.slices,
        "outputs": dict(layout.outputs),
        "slices_per_shard": layout.slices_per_shard,
        "teacher_accuracy": teacher_accuracy,
    }


def read_header(folder: Path) -> dict[str, Any]:
    """The header of a table. Raises `UserError` for a folder without one or with one that is not ours."""
    path = folder / HEADER
    header = _read_json(path)
    if header is None:
        raise UserError(f"table: {path} is missing; give the folder of a table, or leave table empty to build one")
    keys = ("key", "samples", "slices", "outputs", "slices_per_shard")
    if not all(key in header for key in keys) or not isinstance(header["key"], dict):
        raise UserError(f"table: {path} is not the header of a table (keys are missing); {AGAIN}")
    if header.get("schema_version") != SCHEMA_VERSION:
        version = header.get("schema_version")
        raise UserError(f"table: {path} has schema_version {version}, this edgestill reads {SCHEMA_VERSION}; {AGAIN}")
    return header


def layout_of(header: Mapping[str, Any]) -> Layout:
    names = ("samples", "slices", "outputs", "slices_per_shard")
    return Layout(**{name: header[name] for name in names})


def check_key(folder: Path, header: Mapping[str, Any], key: Key, *, slices: int) -> None:
    """Refuse a table that does not hold what `key` asks for, naming the field in which it differs."""
    found = list(differences(header["key"], key.identity()))
    lacking = [name for name in key.outputs if name not in header["outputs"]]
    if lacking and not found:
        found.append(f"outputs: {', '.join(header['outputs'])} there, {', '.join(lacking)} wanted too")
    if not found and header["slices"] < slices:
        found.append(f"epochs: {header['slices']} there, {slices} here")
    if found:
        raise UserError(
            f"table: {folder} is another table: {'; '.join(found)}; give the table of this teacher, data and "
            "augmentation, or leave table empty to build one"
        )


def read_index(folder: Path, layout: Layout, *, hashes: bool = False) -> None:
    """Prove that every shard is there and whole, with `hashes` by its bytes. Raises `UserError` naming the file."""
    index = _read_json(folder / INDEX)
    if index is None:
        done = sum((folder / shard_name(shard)).exists() for shard in range(layout.shards))
        raise UserError(
            f"table: {folder} is not finished ({done} of {layout.shards} shards); build it again, which goes on where "
            "it stopped"
        )
    entries = index.get("shards", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "sha256" in entry for entry in entries):
        raise UserError(f"table: {folder / INDEX} is damaged; {AGAIN}")
    if len(entries) != layout.shards:
        raise UserError(f"table: {folder / INDEX} lists {len(entries)} shards of {layout.shards}; {AGAIN}")
    for shard, entry in enumerate(entries):
        path, expected = folder / shard_name(shard), layout.shard_bytes(shard)
        size = path.stat().st_size if path.exists() else None
        if size is None:
            raise UserError(f"table: {path} is missing ({format_bytes(expected)} expected); {AGAIN}")
        if size != expected:
            kind = "cut short" if size < expected else "too long"
            raise UserError(f"table: {path} is {kind} ({size:,} of {expected:,} bytes); {AGAIN}")
        if hashes and sha256_file(path) != entry["sha256"]:
            raise UserError(f"table: {path} is corrupted (sha256 differs); {AGAIN}")


class ShardWriter:
    """One shard in the making; a context manager. `rows` done so far; whole batches of rows are appended.

    A kill loses what was written since the last `save`; a power cut too, since `save` puts the rows on the disk before
    it says so. What is taken up again is proven by its hash first.
    """

    def __init__(self, folder: Path, layout: Layout, shard: int) -> None:
        self.path = folder / shard_name(shard)
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.progress = self.path.with_suffix(".json")
        self.layout = layout
        self.total = len(layout.slices_of(shard)) * layout.samples
        self.digest = hashlib.sha256()
        self.rows = self._taken_up()

    def _taken_up(self) -> int:
        """Rows that are proven to be on the disk."""
        record = _read_json(self.progress)
        source = self.partial if self.partial.exists() else self.path
        if record is None or not source.exists():
            return 0
        rows = int(record.get("rows", 0))
        digest, left = hashlib.sha256(), rows * self.layout.row_bytes
        with source.open("rb") as file:
            while left and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
        if left or digest.hexdigest() != record.get("sha256"):
            return 0
        self.digest = digest
        return rows

    def __enter__(self) -> ShardWriter:
        with disk_errors(self.partial):
            if self.path.exists() and not self.partial.exists():
                if self.rows == self.total:
                    return self
                self.path.unlink()  # of no known content
            self.file = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self.file, self.rows * self.layout.row_bytes)
            os.lseek(self.file, 0, os.SEEK_END)
        return self

    def append(self, rows: bytes) -> None:
        with disk_errors(self.partial):
            view = memoryview(rows)
            while view:
                view = view[os.write(self.file, view) :]
        self.digest.update(rows)
        self.rows += len(rows) // self.layout.row_bytes

    def save(self) -> None:
        with disk_errors(self.partial):
            os.fsync(self.file)
        write_json(self.progress, {"rows": self.rows, "sha256": self.digest.hexdigest()})

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if not hasattr(self, "file"):
            return
        try:
            with contextlib.nullcontext() if kind is None else contextlib.suppress(UserError):
                self.save()
        finally:
            os.close(self.file)
        if self.rows == self.total:
            with disk_errors(self.path):
                self.partial.rename(self.path)
                sync(self.path.parent)


def finish(folder: Path, layout: Layout) -> None:
    """Write the index of a table whose shards are all there, and drop their progress files."""
    shards = []
    for shard in range(layout.shards):
        record = _read_json(folder / Path(shard_name(shard)).with_suffix(".json"))
        assert record is not None and record["rows"] * layout.row_bytes == layout.shard_bytes(shard), shard_name(shard)
        shards.append({"file": shard_name(shard), "bytes": layout.shard_bytes(shard), "sha256": str(record["sha256"])})
    write_json(folder / INDEX, {"shards": shards})
    drop_progress(folder, layout)


def prove_finished(folder: Path, layout: Layout) -> None:
    """Of a table that has an index: drop the progress files of a whole one, reopen one that is damaged.

    Only a kill after the index brings it here again, with progress files left, or with shards that rotted since. Those
    that are still as the index says stay.
    """
    if not (folder / INDEX).exists():
        return
    with contextlib.suppress(UserError):
        read_index(folder, layout, hashes=True)
        drop_progress(folder, layout)
        return
    entries = (_read_json(folder / INDEX) or {}).get("shards")
    for shard, entry in enumerate(entries[: layout.shards] if isinstance(entries, list) else []):
        rows = layout.shard_bytes(shard) // layout.row_bytes
        record = {"rows": rows, "sha256": entry.get("sha256") if isinstance(entry, dict) else None}
        write_json((folder / shard_name(shard)).with_suffix(".json"), record)  # the writer proves it
    (folder / INDEX).unlink()


def drop_progress(folder: Path, layout: Layout) -> None:
    """Remove what only a table in the making needs."""
    for shard in range(layout.shards):
        (folder / Path(shard_name(shard)).with_suffix(".json")).unlink(missing_ok=True)


def bytes_done(folder: Path, layout: Layout) -> int:
    """What is on the disk of this table already."""
    names = [shard_name(shard) for shard in range(layout.shards)]
    paths = [folder / name for name in names] + [folder / f"{name}.partial" for name in names]
    return sum(path.stat().st_size for path in paths if path.exists())


def _read_json(path: Path) -> dict[str, Any] | None:
    """None for a file that is missing, cut short or not an object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
