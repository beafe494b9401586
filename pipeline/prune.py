"""What a store holds that nothing recent needs: found by following manifests, removed so that a kill loses nothing.

Kept: every stage that the published reports (report.json, and those of a sweep's points) were made from, those of the
newest verdicts, and without any verdict the newest build of each stage. Only folders that this program proves to have
made are ever removed: named STAGE-FINGERPRINT, with a manifest that says the same and no file that it does not list.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import lock, manifest
from pipeline.atomic import disk_errors
from pipeline.errors import UserError
from pipeline.store import BROKEN, FOLDER

Why = Literal["unused", "interrupted", "broken"]
GATE, REPORT = "gate", "report.json"
REPORTS = (REPORT, f"sweep/*/{REPORT}", f"sweep/{REPORT}")


@dataclass(frozen=True, kw_only=True)
class Removable:
    """One folder that may go. `stage` is its stage, `created` ISO 8601 or empty where no manifest tells."""

    path: Path
    stage: str
    why: Why
    size_bytes: int
    created: str


@dataclass(frozen=True, kw_only=True)
class Holding:
    """One run's folder: what it holds in all, what may go, and what was left alone with the reason."""

    folder: Path
    size_bytes: int
    removable: tuple[Removable, ...]
    left: tuple[str, ...]


def runs(folder: Path) -> list[Path]:
    """The runs of a store, or `folder` itself when it is one. Raises UserError when there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a store or the folder of a run")
    found = [folder] if _is_run(folder) else sorted(path for path in folder.iterdir() if _is_run(path))
    if not found:
        raise UserError(f"{folder}: holds no run; give a store (such as artifacts) or the folder of a run")
    return found


def _is_run(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and any(True for _ in _folders(path))


def _folders(folder: Path) -> Iterator[tuple[Path, Any]]:
    for path in sorted(folder.iterdir()):
        match = FOLDER.fullmatch(path.name.removesuffix(BROKEN))
        if match and path.is_dir() and not path.is_symlink():
            yield path, match


def look(folder: Path, *, keep: int = 1, interrupted: bool = False) -> Holding:
    """What may go from the run in `folder` when the `keep` newest verdicts are kept; removes nothing.

    interrupted: whether stages that a killed run would go on with may go too.
    """
    records: dict[str, dict[str, Any]] = {}
    removable: list[Removable] = []
    left: list[str] = []
    for path, match in _folders(folder):
        broken, partial = path.name.endswith(BROKEN), bool(match["partial"])
        if broken or partial:
            if broken or interrupted:
                why: Why = "broken" if broken else "interrupted"
                removable.append(_removable(path, match["stage"], why, ""))
            else:
                left.append(f"{path.name}: interrupted, its run would go on with it; --interrupted removes it")
            continue
        try:
            records[path.name] = ours(path, match)
        except manifest.BrokenFolderError as error:
            left.append(f"{path.name}: {error}; left alone")
    needed = _needed(folder, records, keep)
    removable += [
        _removable(folder / name, record["stage"], "unused", str(record["created"]))
        for name, record in records.items()
        if name not in needed
    ]
    return Holding(folder=folder, size_bytes=manifest.bytes_in(folder), removable=tuple(removable), left=tuple(left))


def ours(path: Path, match: Any) -> dict[str, Any]:
    """The manifest of a folder that this program made and nobody added to. Raises BrokenFolderError."""
    record = manifest.read(path)
    if record["stage"] != match["stage"] or not str(record["fingerprint"]).startswith(match["fingerprint"]):
        raise manifest.BrokenFolderError("its manifest belongs to another folder")
    if foreign := sorted(manifest.names(path) - record["files"].keys()):
        raise manifest.BrokenFolderError(f"holds {foreign[0]}, which edgestill did not write")
    return record


def _needed(folder: Path, records: dict[str, dict[str, Any]], keep: int) -> set[str]:
    """Names of the folders that the kept verdicts were made from."""
    published = {manifest.sha256_file(path) for pattern in REPORTS for path in folder.glob(pattern) if path.is_file()}
    gates = [name for name, record in records.items() if record["stage"] == GATE]
    newest = sorted(gates, key=lambda name: str(records[name]["created"]), reverse=True)[:keep]
    waiting = [
        name for name in gates if name in newest or records[name]["files"].get(REPORT, {}).get("sha256") in published
    ]
    if not waiting:
        by_stage: dict[str, str] = {}
        for name in sorted(records, key=lambda name: str(records[name]["created"])):
            by_stage[records[name]["stage"]] = name
        waiting = list(by_stage.values())
    needed: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        inputs = records[name]["inputs"] if name in records else {}
        waiting += [f"{stage}-{entry['fingerprint'][:12]}" for stage, entry in inputs.items()]
    return needed


def remove(holding: Holding) -> int:
    """Remove what `look` found, under the run's lock; the bytes that were freed. Raises UserError when it is in use.

    Each folder is taken out of the way by a rename first: a kill leaves it whole, or where the next run removes it.
    """
    freed = 0
    with lock.hold(holding.folder), disk_errors(holding.folder):
        for entry in holding.removable:
            if not entry.path.is_dir() or entry.path.is_symlink():
                continue
            match = FOLDER.fullmatch(entry.path.name)
            if entry.why == "unused" and match:
                with contextlib.suppress(manifest.BrokenFolderError):
                    ours(entry.path, match)  # somebody may have put a file there since
                    freed += _take_away(entry)
            else:
                freed += _take_away(entry)
    return freed


def _take_away(entry: Removable) -> int:
    path = entry.path
    if not path.name.endswith(BROKEN):
        path = path.replace(path.with_name(path.name + BROKEN))
    shutil.rmtree(path)
    return entry.size_bytes


def _removable(path: Path, stage: str, why: Why, created: str) -> Removable:
    return Removable(path=path, stage=stage, why=why, size_bytes=manifest.bytes_in(path), created=created)
