"""How a bundle is read: the manifest first, then only what the manifest names, hash by hash.

Arrays are .npy files whose header must match their size and type before they are read; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pipeline.atomic import disk_errors, format_bytes
from pipeline.bundle.archive import Entry, pieces, read_archive
from pipeline.bundle.arrays import read_array
from pipeline.bundle.layout import (
    KIND,
    MANIFEST,
    OUTCOMES,
    PREPROCESSING,
    REPORT,
    RULES,
    SCHEMA_VERSION,
    SIGNATURE,
    Manifest,
    contradiction,
    images_file,
    labels_file,
    outcomes_file,
    slice_file,
)
from pipeline.data.slices import Column
from pipeline.errors import UserError

# A JSON file is read whole; these are far above what a run writes.
LARGEST_JSON_BYTES = {MANIFEST: 4 << 20, SIGNATURE: 64 << 10, RULES: 1 << 20, PREPROCESSING: 16 << 20}
LARGEST_REPORT_BYTES = 64 << 20


def read_manifest(path: Path) -> tuple[Manifest, bytes, dict[str, Entry]]:
    """The manifest, its bytes, and every file of the archive; the hashes are not looked at yet: see `hashed`.

    Raises UserError, one line, for an archive, a manifest or a list of files that is not a bundle's.
    """
    entries = read_archive(path)
    if MANIFEST not in entries:
        raise UserError(f"{path}: has no {MANIFEST}; make it with 'edgestill bundle RUN'")
    text = small_file(path, entries, MANIFEST)
    values = parse_json(text, f"{path}: {MANIFEST}")
    if isinstance(values, dict) and values.get("kind") == KIND and values.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path}: {MANIFEST}: schema_version is {str(values.get('schema_version'))[:20]}, not {SCHEMA_VERSION}; "
            "use the edgestill that wrote it"
        )
    try:
        manifest = Manifest.model_validate(values)
    except (ValidationError, RecursionError) as error:
        raise UserError(f"{path}: {MANIFEST}: {_first_fault(error)}; make the bundle again") from None
    if why := contradiction(manifest):
        raise UserError(f"{path}: {MANIFEST}: {why}; make the bundle again")
    return manifest, text, entries


def _first_fault(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:60] for part in fault["loc"])
    return " ".join(f"{place}: {fault['msg']}".split())


def small_file(path: Path, entries: Mapping[str, Entry], name: str) -> bytes:
    """A file that is read whole, refused above its limit before a byte of it is read."""
    entry = entries[name]
    most = LARGEST_JSON_BYTES.get(name, LARGEST_REPORT_BYTES)
    if entry.size > most:
        raise UserError(f"{path}: {name} has {format_bytes(entry.size)}; at most {format_bytes(most)} are read")
    return b"".join(pieces(path, entry))


def parse_json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply; make the bundle again") from None
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({' '.join(str(error).split())[:80]}); copy the file again") from None


def hashed(path: Path, entry: Entry, target: Path | None = None) -> tuple[str, int]:
    """SHA-256 and CRC-32 of one file's bytes; with `target` they are written there too, to a file that is not there."""
    digest, crc32 = hashlib.sha256(), 0
    with target.open("xb") if target else contextlib.nullcontext() as file:
        for piece in pieces(path, entry):
            digest.update(piece)
            crc32 = zlib.crc32(piece, crc32)
            if file:
                file.write(piece)
    return digest.hexdigest(), crc32


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose every hash was right when it was unpacked to `folder`. `manifest_sha256` names the bundle."""

    path: Path
    folder: Path
    manifest: Manifest
    manifest_sha256: str
    report: dict[str, Any]
    rules: list[Any]

    def samples(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (N, H, W, C), left on the disk until they are read, and labels int64 (N,)."""
        n = self.manifest.samples[split].n  # type: ignore[index]
        images = self.array(images_file(split), "uint8", (n, *self.manifest.image_shape))
        return images, self.array(labels_file(split), "int64", (n,))

    def outcomes(self, reference: str, split: str) -> dict[str, np.ndarray]:
        """What `reference` did on the samples on the host, as `Task.outcomes` gives it."""
        n = self.manifest.samples[split].n  # type: ignore[index]
        return {
            key: np.array(self.array(outcomes_file(reference, split, key), kind, (n,)))
            for key, kind in OUTCOMES.items()
        }

    def slices(self) -> dict[str, Column]:
        """The columns of the test samples. Raises UserError for one whose values the report does not name."""
        n, known = self.manifest.samples["test"].n, self.report["data"].get("slices")
        found = {}
        for place, key in enumerate(self.manifest.slices):
            codes = np.array(self.array(slice_file(place), "int32", (n,)))
            names = known.get(key) if isinstance(known, dict) else None
            names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
            if not names or codes.min() < -1 or codes.max() >= len(names):
                raise UserError(
                    f"{self.path}: {REPORT}: data.slices does not name what {key[:60]!r} has; make the bundle again"
                )
            found[key] = Column(names=tuple(names), codes=codes)
        return found

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        return read_array(self.folder / name, dtype, shape, where=f"{self.path}: {name}")


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Bundle]:
    """Check everything and unpack to a folder of its own that is gone afterwards. Raises UserError, one line."""
    with tempfile.TemporaryDirectory(prefix="edgestill-bundle-") as name:
        yield _unpack(path, Path(name))


def _unpack(path: Path, folder: Path) -> Bundle:
    from pipeline.reports.report import check

    manifest, text, entries = read_manifest(path)
    if odd := sorted((entries.keys() - {MANIFEST, SIGNATURE}) ^ manifest.files.keys()):
        what = "is missing" if odd[0] in manifest.files else "is not in its manifest"
        raise UserError(f"{path}: {odd[0]} {what}; 'edgestill verify {path}' says more")
    for file, entry in entries.items():
        with disk_errors(folder / file, needed_bytes=entry.size):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            sha256, crc32 = hashed(path, entry, folder / file)
        known = manifest.files.get(file)
        if crc32 != entry.crc32 or (known and (known.sha256, known.size) != (sha256, entry.size)):
            raise UserError(f"{path}: {file} was changed; 'edgestill verify {path}' says more")
    report = parse_json(small_file(path, entries, REPORT), f"{path}: {REPORT}")
    rules = parse_json(small_file(path, entries, RULES), f"{path}: {RULES}")
    check(report, f"{path}: {REPORT}")
    if not isinstance(rules, dict) or not isinstance(rules.get("gate"), list):
        raise UserError(f"{path}: {RULES}: has no list of rules; make the bundle again")
    names = report["data"].get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: {REPORT}: data.class_names is no list of names; make the bundle again")
    return Bundle(
        path=path,
        folder=folder,
        manifest=manifest,
        manifest_sha256=hashlib.sha256(text).hexdigest(),
        report=report,
        rules=rules["gate"],
    )
