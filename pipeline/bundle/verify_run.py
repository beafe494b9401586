"""The folder of a run, or the record of a device: is every byte as it was written, and does the verdict follow from it?

A run is a chain of sealed manifests: report.json is the one that the gate stage wrote, its manifest names the digests
of the stages before it, and theirs those before them. The folder may lie anywhere; nothing outside of it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import manifest as stage_manifest
from pipeline.bundle.archive import name_fault
from pipeline.bundle.layout import REPORT
from pipeline.bundle.verify import Change, Verified, rejudged
from pipeline.errors import UserError
from pipeline.sample_files import MOST_BYTES, EvidenceError

GATE, DATA, RELEASE, SWEEP = "gate", "data", "release", "sweep.json"
UNFINISHED = Change(file=REPORT, what="missing: this run has no verdict; run its recipe again")


def verify_run(folder: Path) -> Verified:
    """Hash every finished stage, follow the manifests from the report to the data, and judge again from the samples.

    Raises UserError for a folder that is neither a run nor the record of a device.
    """
    stages: dict[str, dict[str, Any]] = {}
    changes: list[Change] = []
    files = size = 0
    for record in sorted(folder.glob(f"*-*/{stage_manifest.NAME}")):
        stage = record.parent
        if stage.suffix in (".partial", ".broken"):
            continue
        try:
            manifest = stage_manifest.read(stage)
        except stage_manifest.BrokenFolderError as error:
            changes.append(Change(file=stage.name, what=str(error)))
            continue
        stages[stage.name] = manifest
        for name, known in manifest["files"].items():
            files, size = files + 1, size + known["size"]
            changes += _file_change(stage / name, f"{stage.name}/{name}", known["sha256"])
        changes += [
            Change(file=f"{stage.name}/{name}", what="not in the manifest")
            for name in sorted(stage_manifest.names(stage) - manifest["files"].keys())
        ]
    report, found = _report(folder, stages)
    if not files and not changes and (report is None or "bundle" not in report):
        raise UserError(f"{folder}: no finished stage in it; give a bundle or the folder of a run")
    changes += found
    if report is None:
        if not found and not (folder / SWEEP).exists():
            changes.append(UNFINISHED)
        return Verified(files=files, size_bytes=size, changes=tuple(dict.fromkeys(changes)))
    if "bundle" not in report:
        changes += [*_chain(folder, report, stages), *_artifacts(folder, report)]
    judged, found = rejudged(report, _reader(folder))
    if judged is not None and not judged.samples:
        found.append(Change(file=REPORT, what="names no recorded samples, so its verdict cannot be judged again"))
    if "bundle" in report and judged is not None:  # the record of a device: a report and its samples
        places = {folder / place["path"] for row in report["subjects"] for place in (row.get("stored") or {}).values()}
        files, size = files + len(places), size + sum(path.stat().st_size for path in places)
    changes = list(dict.fromkeys([*changes, *found]))
    of_device = "bundle" in report
    return Verified(files=files, size_bytes=size, changes=tuple(changes), judged=judged, of_device=of_device)


def _report(folder: Path, stages: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[Change]]:
    """report.json, which in a run must be the bytes that a gate stage wrote."""
    from pipeline.reports.report import check

    path = folder / REPORT
    try:
        content = path.read_bytes()
        report = json.loads(content)
    except FileNotFoundError:
        return None, []
    except (ValueError, RecursionError):
        return None, [Change(file=REPORT, what="is not a report")]
    except OSError as error:
        return None, [Change(file=REPORT, what=f"cannot be read ({error.strerror})")]
    try:
        check(report, REPORT)
    except UserError:
        return None, [Change(file=REPORT, what="is not a report")]
    if "bundle" in report and not stages:
        return report, []
    written = [gate["files"][REPORT]["sha256"] for name, gate in stages.items() if _is(name, GATE, gate)]
    if stage_manifest.sha256_file(path) not in written:
        wrote = "no gate stage of this folder wrote it" if written else "the gate stage that wrote it is missing"
        return report, [Change(file=REPORT, what=wrote)]
    return report, []


def _is(name: str, stage: str, manifest: Mapping[str, Any]) -> bool:
    return name.rpartition("-")[0] == stage and REPORT in manifest["files"]


def _chain(folder: Path, report: Mapping[str, Any], stages: Mapping[str, Any]) -> Iterator[Change]:
    """Every stage that the report was made from must be there, with the digest that the next one read."""
    sha256 = stage_manifest.sha256_file(folder / REPORT)
    gates = [m for name, m in stages.items() if _is(name, GATE, m) and m["files"][REPORT]["sha256"] == sha256]
    seen: set[str] = set()
    waiting = gates[:1]
    while waiting:
        manifest = waiting.pop()
        for name, needed in manifest["inputs"].items():
            place = f"{name}-{needed['fingerprint'][:12]}"
            if place in seen:
                continue
            seen.add(place)
            if place not in stages:
                if not (folder / place).is_dir():
                    yield Change(file=place, what="missing")
                continue
            if stages[place]["digest"] != needed["digest"]:
                expected, got = (str(found["digest"])[:64] for found in (needed, stages[place]))
                yield Change(file=place, what="digest", expected=expected, got=got)
            waiting.append(stages[place])
    for place in seen:
        if place.rpartition("-")[0] == DATA and place in stages:
            try:
                facts = json.loads((folder / place / "data.json").read_bytes())
            except (OSError, ValueError):
                continue  # said already, file by file
            if report["data"] != facts:
                yield Change(file=REPORT, what=f"data is not what {place} found")


def _artifacts(folder: Path, report: Mapping[str, Any]) -> Iterator[Change]:
    """Files of the report that are not the bytes that were judged; and what lies in release/ must be the chosen one."""
    from profiles.size import size_bytes

    known: dict[str, str] = {}
    for row in report["subjects"]:
        path, sha256 = row.get("path"), row.get("sha256")
        if not path or not sha256:
            continue
        if name_fault(str(path)):
            yield Change(file=REPORT, what=f"the path of {row['name']} {name_fault(str(path))}")
            continue
        known[str(path)] = str(sha256)
        change = _file_change(folder / str(path), str(path), str(sha256))
        yield from change
        if not change and row.get("size_bytes") != (size := size_bytes(folder / str(path))):
            got = f"{size:,} bytes"
            yield Change(file=REPORT, what=f"size of {row['name']}", expected=str(row.get("size_bytes")), got=got)
    chosen = (report.get("selection") or {}).get("chosen")
    row = next((row for row in report["subjects"] if row["name"] == chosen), {})
    release = folder / RELEASE
    weights = Path(str(row.get("path"))).with_suffix(".bin") if str(row.get("path")).endswith(".xml") else None
    for path in sorted(release.rglob("*")) if release.is_dir() else []:
        name = path.relative_to(folder).as_posix()
        if weights and path.name == weights.name and (folder / weights).is_file() and report["verdict"] == "released":
            yield from _file_change(path, name, stage_manifest.sha256_file(folder / weights))  # IR is two files
        elif path.is_file() and (report["verdict"] != "released" or path.name != Path(str(row.get("path"))).name):
            yield Change(file=name, what="was not released")
        elif path.is_file():
            yield from _file_change(path, name, str(row.get("sha256")))


def _reader(folder: Path) -> Any:
    def read(name: str, sha256: str) -> bytes:
        if fault := name_fault(name):
            raise EvidenceError(f"{REPORT}: its file {name[:60]!r} {fault}")
        path = folder / name
        try:
            if path.stat().st_size > MOST_BYTES:
                raise EvidenceError(f"{name}: too large to be read")
            content = path.read_bytes()
        except FileNotFoundError:
            raise EvidenceError(f"{name}: missing") from None
        except OSError as error:
            raise EvidenceError(f"{name}: cannot be read ({error.strerror})") from None
        if (got := stage_manifest.sha256_bytes(content)) != sha256:
            raise EvidenceError(f"{name}: sha256: expected {sha256}, got {got}")
        return content

    return read


def _file_change(path: Path, name: str, sha256: str) -> list[Change]:
    try:
        got = stage_manifest.sha256_file(path)
    except FileNotFoundError:
        return [Change(file=name, what="missing")]
    except OSError as error:
        return [Change(file=name, what=f"cannot be read ({error.strerror})")]
    return [] if got == sha256 else [Change(file=name, what="sha256", expected=sha256, got=got)]
