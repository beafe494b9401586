"""A sweep: every point of a grid through the whole chain in one store, and one table of all of them.

Stages are addressed by what they depend on, so the points share a teacher, its table, a control and whatever else is
the same for them, and a sweep that was killed goes on where it was. `<out>/<recipe>/sweep/` holds sweep.json,
sweep.html and a folder with the reports of each point; nothing is released by a sweep.
"""

from __future__ import annotations

import datetime
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import chain, manifest
from pipeline.atomic import format_bytes, write_bytes, write_json, write_text
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.stage import Stage
from pipeline.stages import gate
from pipeline.stages.lesson import GENERATION, STUDENT
from pipeline.stages.table import NAME as TEACHER_TABLE
from pipeline.store import Store
from pipeline.sweeps.grid import Grid
from pipeline.sweeps.points import Plan, Point, plan

Engine = Literal["local", "ray"]
WRITE_S = 5.0
FOLDER, TABLE, PAGE = "sweep", "sweep.json", "sweep.html"
Broken = dict[str, tuple[str, str]]  # key of a stage that failed -> (point, reason)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A point, the command that runs it alone, and its stages."""

    point: Point
    command: str
    stages: tuple[Stage, ...]
    readers: Mapping[str, int] = field(default_factory=dict)  # its tables -> trainings of all points that read them


def sweep(
    recipe: str | Path | Recipe,
    *,
    grid: Sequence[str] | Mapping[str, Sequence[Any]] = (),
    repeats: int | None = None,
    out: str | Path = chain.DEFAULT_OUT,
    overrides: Sequence[str] = (),
    smoke: bool = False,
    only: Sequence[str] = (),
    engine: Engine = "local",
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run every point that is not fresh and return the table, as sweep.json has it (`pipeline.sweeps.table.KEYS`).

    `grid` is `["distill.lr=0.1,0.05"]` or `{"distill.lr": [0.1, 0.05]}` and takes the place of the recipe's `[sweep]`;
    `repeats` is the number of seeds of each point; `only` names points. A point that fails does not stop the others:
    its row says why. The table is written after every point. Raises `UserError` for bad input, before anything runs.
    """
    found = plan(recipe, grid=grid, overrides=overrides, smoke=smoke, repeats=repeats, only=only)
    words = [str(recipe.name if isinstance(recipe, Recipe) else recipe), *(["--smoke"] if smoke else [])]
    jobs = counted([job_of(point, found, words) for point in found.points])
    store, say = Store(out, found.name), say or chain.to_stderr
    folder = store.folder / FOLDER
    table = Table(folder=folder, jobs=jobs, grid=found.grid, name=found.name, engine=engine)
    table.command = sweep_command(words, grid=found.grid if grid else {}, overrides=overrides, only=only, engine=engine)
    table.command += f" --repeats {repeats}" if repeats is not None else ""
    broken: Broken = {}
    with store.lock():
        before = manifest.bytes_in(store.folder)
        if engine == "ray":
            from pipeline.sweeps.on_ray import train_all

            broken = train_all(jobs, store, say)
        seen: set[Path] = set()
        try:
            for i, job in enumerate(jobs):

                def told(line: str, head: str = f"[{i + 1}/{len(jobs)} {job.point.name}]") -> None:
                    say(f"{head} {line}")

                try:
                    folders = run_point(job, store, told, broken)
                except ModuleNotFoundError:
                    raise
                except Exception as error:
                    table.failed(i, reason_of(error))
                    told(f"failed: {reason_of(error)}")
                else:
                    table.done(i, publish(folders, folder / job.point.slug), folders, seen)
                table.write(at_most_every_s=WRITE_S)
        finally:
            table.write()
        held = manifest.bytes_in(store.folder)
    if held > before:  # a store never grows without saying so
        say(f"{store.folder}: holds {format_bytes(held)}, {format_bytes(held - before)} of it new")
    return table.document()


def publish(folders: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Copy a point's reports to where its row points; returns the report."""
    from pipeline.reports.report import load

    folder.mkdir(parents=True, exist_ok=True)
    for file in chain.PUBLISHED:
        write_bytes(folder / file, (folders[gate.NAME] / file).read_bytes())
    return load(folder)


def job_of(point: Point, found: Plan, words: Sequence[str]) -> Job:
    changes = [part for change in (*found.fixed, *point.changes) for part in ("--set", change)]
    command = shlex.join(["edgestill", "run", *words, *changes])
    return Job(point=point, command=command, stages=chain.stages(point.recipe, command=command))


def counted(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with the number of trainings, over all points, that read each of their tables: one that several points
    share is worth more than one of a point alone. What is counted is the same for all who share it."""
    readers: dict[str, set[str]] = {}  # key of a table -> keys of the trainings
    keys = [stage_keys(job.stages) for job in jobs]
    for job, of_job in zip(jobs, keys, strict=True):
        for stage in job.stages:
            for name in stage.needs if stage.name.startswith((STUDENT, GENERATION)) else ():
                if name.partition("-")[0] == TEACHER_TABLE:
                    readers.setdefault(of_job[name], set()).add(of_job[stage.name])
    made = []
    for job, of_job in zip(jobs, keys, strict=True):
        known = {name: len(readers[key]) for name, key in of_job.items() if key in readers}
        stages = chain.stages(job.point.recipe, command=job.command, readers=known) if known else job.stages
        made.append(replace(job, stages=stages, readers=known))
    return made


def sweep_command(
    words: Sequence[str], *, grid: Grid, overrides: Sequence[str], only: Sequence[str], engine: str
) -> str:
    """The command line of the sweep itself."""
    parts = [part for key, texts in grid.items() for part in ("--grid", f"{key}={','.join(texts)}")]
    parts += [part for text in overrides for part in ("--set", text)]
    parts += [part for name in only for part in ("--only", name)]
    parts += ["--engine", engine] if engine != "local" else []
    return shlex.join(["edgestill", "sweep", *words, *parts])


def stage_keys(stages: Sequence[Stage]) -> dict[str, str]:
    """Stage -> a key that two points have in common when that stage is the same for them, known before it has run.

    As the fingerprint, with the keys of the needed stages in the place of the digests of what they wrote.
    """
    keys: dict[str, str] = {}
    for stage in stages:
        keys[stage.name] = manifest.sha256_json(manifest.dependencies(stage, keys))
    return keys


def run_point(job: Job, store: Store, say: Callable[[str], None], broken: Broken) -> dict[str, Path]:
    """Stage -> folder. A stage that failed for an earlier point is not tried again: `broken` remembers it."""
    keys = stage_keys(job.stages)
    for name, key in keys.items():
        if key in broken:
            point, reason = broken[key]
            raise UserError(reason if point == job.point.name else f"as {point}, whose {name} is the same: {reason}")
    try:
        return store.run(job.stages, say, say_unused=False)
    except Exception as error:
        if store.fresh:  # the stage that was begun last
            broken[keys[list(store.fresh)[-1]]] = (job.point.name, reason_of(error))
        raise


def reason_of(error: BaseException) -> str:
    """One line, as the command line would say it."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if isinstance(error, UserError) or type(error).__module__.partition(".")[0] in ("exporters", "profiles"):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    first = text.partition("; ")[0] or "no message"
    return f"{type(error).__name__}: {first} ('edgestill run' with --debug shows the traceback)"


class Table:
    """The rows so far; a row is replaced once its point has ended."""

    def __init__(self, *, folder: Path, jobs: Sequence[Job], grid: Grid, name: str, engine: str) -> None:
        from pipeline.sweeps.table import ABSENT_POINT

        self.folder, self.grid, self.name, self.engine = folder, grid, name, engine
        self.command, self.written = "", 0.0
        self.recipes = [job.point.recipe for job in jobs]
        self.context: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = [
            {
                **ABSENT_POINT,
                "name": job.point.name,
                "slug": job.point.slug,
                "set": job.point.values,
                "command": job.command,
                "status": "pending",
            }
            for job in jobs
        ]

    def failed(self, i: int, why: str) -> None:
        self.rows[i] |= {"status": "failed", "why": why}

    def done(self, i: int, report: Mapping[str, Any], folders: Mapping[str, Path], seen: set[Path]) -> None:
        from pipeline.sweeps.table import figures

        self.rows[i] |= {"status": "done", **figures(self.recipes[i], report, folders, seen)}
        self.context = {key: report[key] for key in ("environment", "data")}

    def document(self) -> dict[str, Any]:
        from pipeline.sweeps.table import document

        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        made = document(
            recipe=self.name, command=self.command, created=now, engine=self.engine, grid=self.grid, rows=self.rows
        )
        return made | self.context

    def write(self, at_most_every_s: float = 0.0) -> None:
        """sweep.json and sweep.html; points that are all fresh would otherwise write them more often than they work."""
        from pipeline.sweeps.page import render

        if time.monotonic() - self.written < at_most_every_s:
            return
        self.written = time.monotonic()
        found = self.document()
        write_json(self.folder / TABLE, found)
        write_text(self.folder / PAGE, render(found))
