"""What changed in a bundle since its manifest was written, file by file; and the verdict again from its samples.

`pipeline.bundle.verify_run` does the same for the folder of a run and for the record of a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bundle import signature
from pipeline.bundle.archive import Entry, pieces
from pipeline.bundle.contents import hashed, parse_json, read_manifest, small_file
from pipeline.bundle.layout import MANIFEST, REPORT, SIGNATURE, Manifest, evidence_file
from pipeline.errors import UserError
from pipeline.gates.rejudge import Rejudged, rejudge
from pipeline.sample_files import MOST_BYTES, EvidenceError


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
    """What was looked at. `signed` is None without a signature; `trusted`: a list of signers vouches for its key.

    judged: the verdict again, None where there is no report, or one that `changes` says is not to be believed.
    of_device: it is the record that a device made of a bundle.
    """

    files: int
    size_bytes: int
    changes: tuple[Change, ...]
    signed: str | None = None
    trusted: bool = False
    judged: Rejudged | None = None
    of_device: bool = False


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
    judged, found = None, list[Change]()
    if not changes:  # what was changed is not worth another look
        judged, found = _judged(path, manifest, entries)
    return Verified(
        files=len(entries),
        size_bytes=sum(entry.size for entry in entries.values()),
        changes=tuple(changes + found),
        signed=signed,
        trusted=trusted,
        judged=judged,
    )


def _judged(path: Path, manifest: Manifest, entries: dict[str, Entry]) -> tuple[Rejudged | None, list[Change]]:
    """The verdict from the bundle's evidence; without any (made before there was such a thing) from its report."""
    from pipeline.reports.report import check

    report = parse_json(small_file(path, entries, REPORT), f"{path}: {REPORT}")
    check(report, f"{path}: {REPORT}")
    if not manifest.evidence:
        report = report | {"subjects": [{k: v for k, v in row.items() if k != "stored"} for row in report["subjects"]]}

    def read(name: str, sha256: str) -> bytes:
        file = evidence_file(name)
        entry = entries.get(file)
        if entry is None or file not in manifest.files:
            raise EvidenceError(f"{file}: missing")
        if manifest.files[file].sha256 != sha256 or entry.size > MOST_BYTES:
            raise EvidenceError(f"{file}: is not the file that {REPORT} names")
        return b"".join(pieces(path, entry))

    return rejudged(report, read)


def rejudged(report: dict[str, Any], read: Callable[[str, str], bytes]) -> tuple[Rejudged | None, list[Change]]:
    """The verdict again, and every figure of `report` that its samples do not give, as changes."""
    try:
        found = rejudge(report, read)
    except EvidenceError as error:
        file, _, what = str(error).partition(": ")
        return None, [Change(file=file, what=what)]
    except UserError as error:
        return None, [Change(file=REPORT, what=str(error).removeprefix(f"{REPORT}: "))]
    return found, [Change(file=REPORT, what=line) for line in found.differences]


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
