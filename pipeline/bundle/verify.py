"""What changed in a bundle, or in the folder of a run, since its manifests were written: file by file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import manifest as stage_manifest
from pipeline.bundle import signature
from pipeline.bundle.archive import Entry
from pipeline.bundle.contents import MANIFEST, SIGNATURE, Manifest, hashed, read_manifest, small_file
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Change:
    """One file that is not what the manifest says; `expected` and `got` in words, ready to be read."""

    file: str
    what: str
    expected: str = ""
    got: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" + (f": expected {self.expected}, got {self.got}" if self.expected else "")


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was looked at. `signed` is None without a signature; `trusted`: a list of signers vouches for its key."""

    files: int
    size_bytes: int
    changes: tuple[Change, ...]
    signed: str | None = None
    trusted: bool = False


def verify_bundle(path: Path, signers: Path | None = None) -> Verified:
    """Hash every file and check the signature; with `signers`, a missing signature is a change too.

    Raises UserError for a file that is no bundle at all, or whose frame was changed.
    """
    manifest, text, entries = read_manifest(path)
    changes = list(_changes(path, manifest, entries))
    signed, trusted = None, False
    if SIGNATURE in entries:
        if signers is None and not signature.available():
            signed = f"signed, and not checked: {signature.TOOL} is not installed"
        else:
            try:
                signed, trusted = signature.check(text, small_file(path, entries, SIGNATURE), signers)
            except UserError as error:
                changes.append(Change(file=SIGNATURE, what=str(error)))
    elif signers is not None:
        changes.append(Change(file=SIGNATURE, what="missing: the bundle is not signed; do not use this file"))
    return Verified(
        files=len(entries),
        size_bytes=sum(entry.size for entry in entries.values()),
        changes=tuple(changes),
        signed=signed,
        trusted=trusted,
    )


def _changes(path: Path, manifest: Manifest, entries: dict[str, Entry]) -> Iterator[Change]:
    for name in sorted(entries.keys() | manifest.files.keys()):
        entry, known = entries.get(name), manifest.files.get(name)
        if entry is None:
            yield Change(file=name, what="missing")
            continue
        if known is None and name not in (MANIFEST, SIGNATURE):
            yield Change(file=name, what="not in the manifest")
            continue
        sha256, crc32 = hashed(path, entry)
        if known is not None and entry.size != known.size:
            yield Change(file=name, what="size", expected=f"{known.size:,} bytes", got=f"{entry.size:,} bytes")
        elif known is not None and sha256 != known.sha256:
            yield Change(file=name, what="sha256", expected=known.sha256, got=sha256)
        elif crc32 != entry.crc32:
            yield Change(file=name, what="checksum", expected=f"{entry.crc32:08x}", got=f"{crc32:08x}")


def verify_run(folder: Path) -> Verified:
    """Hash every finished stage in the folder of a run, and the artifacts that its report judged."""
    changes: list[Change] = []
    files = size = 0
    for record in sorted(folder.glob(f"*-*/{stage_manifest.NAME}")):
        stage = record.parent
        try:
            manifest = stage_manifest.read(stage)
        except stage_manifest.BrokenFolderError as error:
            changes.append(Change(file=stage.name, what=str(error)))
            continue
        for name, known in manifest["files"].items():
            files, size = files + 1, size + known["size"]
            changes += _file_change(stage / name, f"{stage.name}/{name}", known["sha256"])
    if not files and not changes:
        raise UserError(f"{folder}: no finished stage in it; give a bundle or the folder of a run")
    return Verified(files=files, size_bytes=size, changes=tuple(dict.fromkeys(changes + _judged(folder))))


def _judged(folder: Path) -> list[Change]:
    """Artifacts of the report that are not the bytes that were judged."""
    try:
        subjects: list[Any] = json.loads((folder / "report.json").read_bytes())["subjects"]
        known = {str(row["path"]): str(row["sha256"]) for row in subjects if row.get("path") and row.get("sha256")}
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [Change(file="report.json", what="is not a report")]
    return [change for name, sha256 in known.items() for change in _file_change(folder / name, name, sha256)]


def _file_change(path: Path, name: str, sha256: str) -> list[Change]:
    try:
        got = stage_manifest.sha256_file(path)
    except FileNotFoundError:
        return [Change(file=name, what="missing")]
    except OSError as error:
        return [Change(file=name, what=f"cannot be read ({error.strerror})")]
    return [] if got == sha256 else [Change(file=name, what="sha256", expected=sha256, got=got)]
