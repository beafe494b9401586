"""The training of a sweep on a Ray cluster: every stage that is not the same as another's is one task, one GPU each.

Only what stands before the export runs there; it is what takes the hours. Evaluating and profiling stay with the
driver, one point after another on one quiet machine, so that their figures compare. All nodes must see the folder of
the store: a task works in a store of its own inside it, whose needed stages are links to finished ones, and its
result is renamed into the sweep's store. So a sweep that was interrupted goes on here or with the local engine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.stages import export
from pipeline.stages.data import NAME as DATA
from pipeline.store import BROKEN, Store

if TYPE_CHECKING:
    from pipeline.stage import Stage
    from pipeline.sweeps.run import Broken, Job

SCRATCH, LOG = "ray", "log.txt"
_POLL_S = 0.5
_OBJECT_STORE_BYTES = 100 * 2**20  # tasks pass names of folders, no arrays
_RETRIES = 1  # of a task whose worker died; it goes on at its last checkpoint


@dataclass(kw_only=True)
class Unit:
    """A stage to build once: `key` as in `run.stage_keys`, `needs` stage -> key, `all_needs` theirs as well."""

    key: str
    stage: Stage
    needs: dict[str, str]
    all_needs: dict[str, str]
    job: Job
    scratch: Path
    read: int = field(default=0)  # characters of its log that were said already


def train_all(jobs: Sequence[Job], store: Store, say: Callable[[str], None]) -> Broken:
    """Bring every stage before the export up to date in `store`; returns what failed. Raises `UserError` without ray.

    A stage whose needs failed is left out; `run_point` finds the reason. The caller holds the lock of the store.
    """
    with cluster() as ray:
        waiting = units_of(jobs, store)
        gpus, cpus = share_of(ray)
        say(f"ray: {len(waiting)} different stages to train, each with {cpus} CPU(s) and {gpus or 'no'} GPU")
        finished: dict[str, dict[str, Any]] = {}  # key -> manifest
        broken: Broken = {}
        running: dict[Any, Unit] = {}
        try:
            while waiting or running:
                for unit in [unit for unit in waiting.values() if set(unit.needs.values()) <= finished.keys()]:
                    del waiting[unit.key]
                    if (record := built(unit, finished, store)) is not None:
                        finished[unit.key] = record
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        unit.read = len((unit.scratch / LOG).read_text(encoding="utf-8"))  # of an earlier attempt
                    task = ray.remote(train_one).options(
                        num_cpus=cpus, num_gpus=0 if unit.stage.name == DATA else gpus, max_retries=_RETRIES
                    )
                    links = [str(folder_of(store, finished[key]).resolve()) for key in unit.all_needs.values()]
                    job = unit.job
                    reference = task.remote(
                        job.point.recipe, job.readers, unit.stage.name, str(unit.scratch), links, cwd()
                    )
                    running[reference] = unit
                if not running:
                    if not any(set(unit.needs.values()) <= finished.keys() for unit in waiting.values()):
                        break  # what is left waits for a stage that failed
                    continue
                done, _ = ray.wait(list(running), timeout=_POLL_S)
                for unit in running.values():
                    tell(unit, say)
                for reference in done:
                    unit = running.pop(reference)
                    try:
                        finished[unit.key] = adopt(unit, ray.get(reference), finished, store)
                    except (UserError, ray.exceptions.RayError) as error:
                        broken[unit.key] = (unit.job.point.name, _reason(unit, error))
                        say(f"[ray {unit.job.point.name}] {unit.stage.name} failed: {broken[unit.key][1]}")
        finally:
            for reference in running:  # Ctrl-C: a training keeps its last checkpoint
                ray.cancel(reference)
    return broken


def units_of(jobs: Sequence[Job], store: Store) -> dict[str, Unit]:
    """Every different stage before the export, each after what it needs."""
    from pipeline.sweeps.run import FOLDER, stage_keys

    found: dict[str, Unit] = {}
    for job in jobs:
        names = [stage.name for stage in job.stages]
        stages = job.stages[: names.index(export.NAME)]
        keys = stage_keys(stages)
        reach: dict[str, dict[str, str]] = {}
        for stage in stages:
            key = keys[stage.name]
            needs = {name: keys[name] for name in stage.needs}
            reach[stage.name] = needs | {k: v for name in stage.needs for k, v in reach[name].items()}
            scratch = (store.folder / FOLDER / SCRATCH / f"{stage.name}-{key[:12]}").resolve()
            unit = Unit(key=key, stage=stage, needs=needs, all_needs=reach[stage.name], job=job, scratch=scratch)
            found.setdefault(key, unit)
    return found


def built(unit: Unit, finished: dict[str, dict[str, Any]], store: Store) -> dict[str, Any] | None:
    """The manifest of the unit when the store has it already, verified; else None."""
    fingerprint = expected(unit, finished)
    with contextlib.suppress(manifest.BrokenFolderError):
        return manifest.verify(store.folder / f"{unit.stage.name}-{fingerprint[:12]}", fingerprint)
    return None


def expected(unit: Unit, finished: dict[str, dict[str, Any]]) -> str:
    """The unit's fingerprint, now that what it needs is there."""
    digests = {name: finished[key]["digest"] for name, key in unit.needs.items()}
    return manifest.sha256_json(manifest.dependencies(unit.stage, digests))


def folder_of(store: Store, record: dict[str, Any]) -> Path:
    return store.folder / f"{record['stage']}-{record['fingerprint'][:12]}"


def adopt(unit: Unit, outcome: tuple[str, str], finished: dict[str, dict[str, Any]], store: Store) -> dict[str, Any]:
    """Rename a task's folder into the store and drop its scratch. Raises `UserError` with the task's own reason."""
    kind, text = outcome
    if kind == "failed":
        raise UserError(text)
    made = Path(text)
    record = manifest.read(made)
    if record["fingerprint"] != expected(unit, finished):
        raise UserError(
            f"{unit.stage.name}: the node that ran it sees other files or settings than this machine; "
            "give every node the same working directory, data and packages"
        )
    final = folder_of(store, record)
    if final.exists():  # verified before, and found broken
        shutil.rmtree(final.replace(final.with_name(final.name + BROKEN)))
    made.rename(final)
    shutil.rmtree(unit.scratch, ignore_errors=True)
    return record


def train_one(
    recipe: Recipe, readers: Mapping[str, int], name: str, scratch: str, links: list[str], directory: str
) -> tuple[str, str]:
    """On a worker: build one stage in a store of its own; ("done", folder) or ("failed", reason)."""
    from pipeline import chain
    from pipeline.sweeps.run import reason_of

    if Path(directory).is_dir():
        os.chdir(directory)  # relative paths of the recipe
        sys.path[:] = [*dict.fromkeys([directory, *sys.path])]  # models of the user's own
    store = Store(scratch, recipe.name)
    store.folder.mkdir(parents=True, exist_ok=True)
    for link in links:
        path = store.folder / Path(link).name
        if not path.is_symlink():
            path.symlink_to(link, target_is_directory=True)
    with (Path(scratch) / LOG).open("a", encoding="utf-8") as log:

        def say(line: str) -> None:
            print(line, file=log, flush=True)

        try:
            folders = store.run(chain.stages(recipe, readers=readers), say, only=[name], say_unused=False)
        except Exception as error:
            return "failed", reason_of(error)
    return "done", str(folders[name])


def tell(unit: Unit, say: Callable[[str], None]) -> None:
    """Say the new whole lines of a task's log, without those about the stages that it only reads."""
    with contextlib.suppress(FileNotFoundError):
        text = (unit.scratch / LOG).read_text(encoding="utf-8")[unit.read :]
        whole = text[: text.rfind("\n") + 1]
        unit.read += len(whole)
        for line in whole.splitlines():
            if not line.endswith(": fresh"):
                say(f"[ray {unit.job.point.name}] {line}")


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """The ray module, connected to the caller's cluster, to a running one, or to one of this machine's own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--engine ray: ray is not installed; pip install 'edgestill[sweep]'") from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        if os.environ.get("RAY_ADDRESS"):
            where = os.environ["RAY_ADDRESS"]
            raise UserError(f"--engine ray: no cluster at RAY_ADDRESS = {where}; start it or unset it") from None
        ours = str(Path(__file__).resolve().parent.parent.parent)
        paths = os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
            **quiet,
        )
    try:
        yield ray
    finally:
        ray.shutdown()


def share_of(ray: Any) -> tuple[int, int]:
    """(GPUs, CPUs) of one task: one GPU and its share of the cores where there are GPUs, else one core."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [int(node.get("CPU", 1) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    return (1, max(1, min(shares))) if shares else (0, 1)


def cwd() -> str:
    return str(Path.cwd())


def _reason(unit: Unit, error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{unit.stage.name}: its worker ended ({type(error).__name__}: {first}); run the same command to go on"
