"""The whole chain: which stages a recipe has, in what order, and where their results end up."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import write_bytes
from pipeline.recipe import Recipe
from pipeline.stage import Stage
from pipeline.stages import data, distill, evaluate, export, gate, ladder, profile, qat, quantize, teacher
from pipeline.stages.subjects import climbed
from pipeline.training.teamwork import led

if TYPE_CHECKING:
    from pipeline.store import StageStatus

DEFAULT_OUT = "artifacts"
PUBLISHED = ("report.json", "report.md", "report.html")
RELEASE = "release"


def stages(recipe: Recipe, *, command: str = "", readers: Mapping[str, int] | None = None) -> tuple[Stage, ...]:
    """Every stage of the recipe, each after what it needs. Cheap: nothing is opened or imported for it.

    `readers`: name of a teacher's table -> trainings that will read it, where a sweep knows of more than this recipe's.
    """
    int8 = (quantize.stage(recipe),) if recipe.quantize else ()
    climb = {"ladder": ladder.stage, "qat": qat.stage}
    found = (
        data.stage(recipe),
        *teacher.stages(recipe),
        *distill.stages(recipe, readers),
        export.stage(recipe),
        *int8,
        *(climb[name](recipe) for name in climbed(recipe)),
        evaluate.stage(recipe),
        profile.stage(recipe),
        gate.stage(recipe, command),
    )
    return tuple(led(stage, recipe) for stage in found)


def plan(
    recipe: str | Path | Recipe, *, out: str | Path = DEFAULT_OUT, overrides: Sequence[str] = (), smoke: bool = False
) -> list[StageStatus]:
    """Each stage fresh or stale, and why; computes nothing."""
    from pipeline.store import Store

    recipe = as_recipe(recipe, overrides, smoke=smoke)
    return Store(out, recipe.name).status(stages(recipe))


def as_recipe(recipe: str | Path | Recipe, overrides: Sequence[str], *, smoke: bool) -> Recipe:
    from pipeline.recipe_file import load_recipe

    return recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe), list(overrides), smoke=smoke)


def run(
    recipe: str | Path | Recipe,
    *,
    out: str | Path = DEFAULT_OUT,
    overrides: Sequence[str] = (),
    smoke: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run what is not fresh and return the report, whose `verdict` is released, refused or undecided.

    `recipe` is a file, the name of a shipped recipe, or a Recipe. Results lie in `out/<recipe name>`: report.json,
    report.md, report.html, and `release/` with the artifact when, and only when, it was released.
    Raises `UserError` (a ValueError) with one line for everything that the user can mend.
    """
    from pipeline.recipe_file import check_files
    from pipeline.reports.report import load
    from pipeline.store import Store

    command = shlex.join(
        ["edgestill", "run", str(recipe if not isinstance(recipe, Recipe) else recipe.name)]
        + (["--smoke"] if smoke else [])
        + [part for override in overrides for part in ("--set", override)]
    )
    recipe = as_recipe(recipe, overrides, smoke=smoke)
    check_files(recipe)
    store = Store(out, recipe.name)
    with store.lock():
        folders = store.run(stages(recipe, command=command), say or to_stderr)
        report = load(folders[gate.NAME] / gate.REPORT)
        publish(report, folders, store.folder)
    return report


def publish(report: dict[str, Any], folders: dict[str, Path], folder: Path) -> None:
    """Copy the report to where people look for it; `release/` exists only while its artifact is released."""
    from profiles.size import model_files

    shutil.rmtree(folder / RELEASE, ignore_errors=True)
    for name in PUBLISHED:
        write_bytes(folder / name, (folders[gate.NAME] / name).read_bytes())
    if report["verdict"] != "released":
        return
    chosen = next(row for row in report["subjects"] if row["name"] == report["selection"]["chosen"])
    source = folder / chosen["path"]
    (folder / RELEASE).mkdir(exist_ok=True)
    for file in model_files(source):  # OpenVINO's own files are two
        write_bytes(folder / RELEASE / file.name, file.read_bytes())


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
