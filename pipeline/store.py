"""Artifacts on disk: `<out>/<recipe>/<stage>-<fingerprint12>/{files, manifest.json}`.

A stage works in `<stage>-<fingerprint12>.partial`; when it ends well its manifest is written, everything is flushed,
and the folder gets its final name in one rename. So a folder with a final name is whole, a killed run goes on in its
partial folder, and nothing is deleted but what is proven broken. `pipeline.manifest` defines fingerprint and digest.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import environment, lock, manifest
from pipeline.atomic import (
    TEMPORARY_SUFFIX,
    disk_errors,
    disk_full,
    format_bytes,
    no_space,
    remove_temporary,
    sync,
    write_json,
)
from pipeline.errors import UserError, nearest
from pipeline.memory import told
from pipeline.stage import RESUME_FOLDER, Context, Stage

State = Literal["fresh", "stale", "missing", "unknown"]
_FULL_BYTES = 1 << 16
_REASONS = 3
PARTIAL, BROKEN = ".partial", ".broken"
FOLDER = re.compile(r"(?P<stage>[a-z][a-z0-9_-]*)-(?P<fingerprint>[0-9a-f]{12})(?P<partial>\.partial)?")


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """Whether a stage would run, and why.

    state: `fresh`: verified and used as it is; `stale`: built before, but not like this; `missing`: never built;
        `unknown`: it depends on whether a stage before it, which has to run, writes other bytes than last time.
    reasons: one fact each; empty when fresh.
    folder: the folder to use or to replace; None while an input is not known.
    seconds: what the last comparable build took; None if there was none.
    """

    stage: str
    state: State
    reasons: tuple[str, ...] = ()
    folder: Path | None = None
    seconds: float | None = None


class Store:
    """The folder of one recipe. `status` only reads; `run` holds the lock."""

    def __init__(self, root: Path | str, recipe_name: str) -> None:
        self.folder = Path(root) / recipe_name
        self.fresh: dict[str, bool] = {}  # of the last run: stage -> used as it was
        self._locked = False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out; a `UserError` names the one that is in. May be nested."""
        if self._locked:
            yield
            return
        with lock.hold(self.folder):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def status(self, stages: Sequence[Stage]) -> list[StageStatus]:
        """The state of every stage, in order; hashes all files of fresh ones, changes nothing, takes no lock."""
        digests: dict[str, str | None] = {}
        result = []
        for stage in _in_order(stages):
            status, record = self._look(stage, manifest.dependencies(stage, digests))
            digests[stage.name] = record["digest"] if record else None
            result.append(status)
        return result

    def run(
        self,
        stages: Sequence[Stage],
        say: Callable[[str], None],
        only: Sequence[str] | None = None,
        *,
        say_unused: bool = True,
    ) -> dict[str, Path]:
        """Bring the stages (or those in `only`, with what they need) up to date; stage -> its verified folder.

        `stages` stand in an order in which each comes after what it needs. A killed or interrupted run is taken up
        again by the same call. Raises `UserError` for a store in use, a full or unwritable disk.
        """
        chosen = _in_order(stages) if only is None else _with_needs(stages, only)
        self.fresh = {}
        folders: dict[str, Path] = {}
        digests: dict[str, str] = {}
        with self.lock():
            for leftover in self.folder.glob(f"*{BROKEN}"):
                shutil.rmtree(leftover, ignore_errors=True)
            for leftover in self.folder.glob(f".*{TEMPORARY_SUFFIX}*"):
                leftover.unlink(missing_ok=True)
            for stage in chosen:
                needed = manifest.dependencies(stage, digests)
                status, record = self._look(stage, needed)
                self.fresh[stage.name] = record is not None
                if record is None:
                    inputs = {name: folders[name] for name in stage.needs}
                    record = self._build(stage, needed, status, inputs, say)
                else:
                    say(f"{stage.name}: fresh")
                digests[stage.name] = record["digest"]
                folders[stage.name] = self._final(stage.name, record["fingerprint"])
            if say_unused:  # the folders of a sweep's other points are no leftovers
                self._say_unused(folders, None if only is None else set(folders), say)
        return folders

    def _look(self, stage: Stage, needed: Mapping[str, Any]) -> tuple[StageStatus, dict[str, Any] | None]:
        """The status, and the verified manifest if the stage is fresh."""
        waiting = [name for name, digest in needed["inputs"].items() if digest is None]
        folder = None if waiting else self._final(stage.name, manifest.sha256_json(needed))
        if folder is not None and folder.exists():
            try:
                record = manifest.verify(folder, manifest.sha256_json(needed))
            except manifest.BrokenFolderError as error:
                return StageStatus(stage=stage.name, state="stale", reasons=(str(error),), folder=folder), None
            fresh = StageStatus(stage=stage.name, state="fresh", folder=folder, seconds=record["seconds"])
            return fresh, record
        interrupted = ("interrupted, will be resumed",) if folder and _has_files(_partial(folder)) else ()
        earlier = self._earlier(stage.name)
        if not earlier:
            reasons = interrupted or ("never built",)
            return StageStatus(stage=stage.name, state="missing", reasons=reasons, folder=folder), None
        closest = min(earlier, key=lambda record: len(manifest.differences(record, needed)))
        reasons = manifest.differences(closest, needed)
        state: State = "stale"
        if waiting and not reasons:
            state, reasons = "unknown", tuple(f"{name} has to be built first" for name in waiting)
        status = StageStatus(
            stage=stage.name,
            state=state,
            reasons=(reasons or ("its folder is gone",)) + interrupted,
            folder=folder,
            seconds=closest["seconds"],
        )
        return status, None

    def _build(
        self,
        stage: Stage,
        needed: Mapping[str, Any],
        status: StageStatus,
        inputs: Mapping[str, Path],
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        fingerprint = manifest.sha256_json(needed)
        final = self._final(stage.name, fingerprint)
        partial = _partial(final)
        with disk_errors(self.folder):
            if final.exists():
                # Out of the way by a rename first, so that a kill here cannot leave half of it under its final name.
                shutil.rmtree(final.replace(final.with_name(final.name + BROKEN)))
            partial.mkdir(parents=True, exist_ok=True)
            remove_temporary(partial)
            resumed = _has_files(partial)
        try:
            record = manifest.verify(partial, fingerprint)
        except manifest.BrokenFolderError:
            say(f"{stage.name}: building ({_first(status.reasons)})")
            record = self._work(stage, needed, partial, inputs, say, resumed=resumed)
        with disk_errors(self.folder):
            shutil.rmtree(partial / RESUME_FOLDER, ignore_errors=True)
            partial.rename(final)
            sync(self.folder)
        size = sum(entry["size"] for entry in record["files"].values())
        say(f"{stage.name}: done in {record['seconds']:.1f} s, {format_bytes(size)}")
        return record

    def _work(
        self,
        stage: Stage,
        needed: Mapping[str, Any],
        partial: Path,
        inputs: Mapping[str, Path],
        say: Callable[[str], None],
        *,
        resumed: bool,
    ) -> dict[str, Any]:
        with disk_errors(partial):
            (partial / manifest.NAME).unlink(missing_ok=True)
        environment.reset_peaks()
        begin_ns = time.perf_counter_ns()
        try:
            stage.run(Context(stage=stage, folder=partial, inputs=inputs, say=say))
        except KeyboardInterrupt:
            say(f"{stage.name}: interrupted; {partial} keeps what was done")
            raise
        except UserError:
            if not _has_files(partial):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        except Exception as error:
            # Native writers hide the cause: torch.save on a full disk is a RuntimeError without an errno.
            if no_space(error) or shutil.disk_usage(partial).free < _FULL_BYTES:
                raise disk_full(partial) from error
            if words := told(error, stage.name):
                raise UserError(f"{stage.name}: {words}; finished stages are kept") from error
            raise
        with disk_errors(partial):
            remove_temporary(partial)
            files = manifest.hash_files(partial)
            assert files, f"stage {stage.name} wrote nothing"
            for folder in {partial, *((partial / name).parent for name in files)}:
                sync(folder)
            for name in files:
                sync(partial / name)
            record = manifest.seal(
                {
                    "schema_version": manifest.SCHEMA_VERSION,
                    "stage": stage.name,
                    "version": stage.version,
                    "fingerprint": manifest.sha256_json(needed),
                    "config": needed["config"],
                    "stamp": needed["stamp"],
                    "inputs": {
                        name: {"fingerprint": manifest.read(inputs[name])["fingerprint"], "digest": digest}
                        for name, digest in needed["inputs"].items()
                    },
                    "files": files,
                    "volatile": list(stage.volatile),
                    "digest": manifest.digest_of(files, stage.volatile),
                    "seconds": (time.perf_counter_ns() - begin_ns) / 1e9,
                    "resumed": resumed,  # then `seconds` is the time of the last part only
                    **environment.peaks(),
                    "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                    "environment": environment.collect(),
                }
            )
            write_json(partial / manifest.NAME, record)
        return record

    def _final(self, stage: str, fingerprint: str) -> Path:
        return self.folder / f"{stage}-{fingerprint[:12]}"

    def _earlier(self, stage: str) -> list[dict[str, Any]]:
        """Readable manifests of finished builds of `stage`, newest first."""
        found = []
        for path, match in self._folders():
            if match["stage"] == stage and not match["partial"]:
                with contextlib.suppress(manifest.BrokenFolderError):
                    found.append(manifest.read(path))
        return sorted(found, key=lambda record: record["created"], reverse=True)

    def _folders(self) -> Iterator[tuple[Path, re.Match[str]]]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in sorted(self.folder.iterdir()):
                if (match := FOLDER.fullmatch(path.name)) and path.is_dir():
                    yield path, match

    def _say_unused(self, used: Mapping[str, Path], stages: set[str] | None, say: Callable[[str], None]) -> None:
        """Earlier builds are kept, so that going back costs nothing; a store never grows without saying so."""
        unused = [
            path
            for path, match in self._folders()
            if path not in used.values() and (stages is None or match["stage"] in stages)
        ]
        parts = []
        if grown := sum(manifest.bytes_in(used[name]) for name, fresh in self.fresh.items() if not fresh):
            parts.append(f"holds {format_bytes(manifest.bytes_in(self.folder))}, {format_bytes(grown)} of it new")
        if unused:
            size = format_bytes(sum(map(manifest.bytes_in, unused)))
            count = f"{len(unused)} folder{'s' * (len(unused) > 1)}"
            parts.append(f"{count} of other settings kept, {size}; 'edgestill store prune'")
        if parts:
            say(f"{self.folder}: {'; '.join(parts)}")


def _partial(final: Path) -> Path:
    return final.with_name(final.name + PARTIAL)


def _first(reasons: tuple[str, ...]) -> str:
    """Reasons for one line; `plan` has all of them."""
    more = len(reasons) - _REASONS
    return "; ".join(reasons[:_REASONS]) + (f"; and {more} more" if more > 0 else "")


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))


def _in_order(stages: Sequence[Stage]) -> list[Stage]:
    seen: set[str] = set()
    for stage in stages:
        assert stage.name not in seen, f"two stages are named {stage.name}"
        assert seen.issuperset(stage.needs), f"stage {stage.name} stands before one that it needs: {stage.needs}"
        seen.add(stage.name)
    return list(stages)


def _with_needs(stages: Sequence[Stage], only: Sequence[str]) -> list[Stage]:
    names = [stage.name for stage in _in_order(stages)]
    wanted = set(only)
    for name in only:
        if name not in names:
            raise UserError(f"no stage is named {name!r}{nearest(name, names)}")
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.needs)
    return [stage for stage in stages if stage.name in wanted]
