"""Evaluate: teacher, control, student and every artifact on the same images, outcome by outcome."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.atomic import write_bytes, write_json
from pipeline.evaluate import evaluate
from pipeline.progress import CountDisplay
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage
from pipeline.stages import distill, export, quantize, teacher
from pipeline.stages.data import NAME as DATA
from pipeline.stages.data import prepared
from pipeline.stages.subjects import TORCH, Judged, climbed, judged, opened, runtimes
from pipeline.tasks import task_of

NAME = "evaluate"
INDEX = "evaluate.json"
PICTURES = "pictures.json"
BASELINES = ("teacher", "control", "student")
MOST_PICTURED = 2  # int8 forms


def needs(recipe: Recipe) -> tuple[str, ...]:
    """Everything that is judged, the networks of further seeds left out."""
    return (*before_ladder(recipe), *climbed(recipe))


def before_ladder(recipe: Recipe) -> tuple[str, ...]:
    """The same without what the precision ladder adds."""
    control = (distill.CONTROL,) if recipe.distill.control else ()
    int8 = (quantize.NAME,) if recipe.quantize else ()
    return (DATA, teacher.NAME, *distill.generations(recipe), distill.NAME, *control, export.NAME, *int8)


def stage(recipe: Recipe) -> Stage:
    repeats = tuple(run.name for run in distill.stages(recipe) if "-seed" in run.name)
    return Stage(
        name=NAME,
        version=2,
        needs=needs(recipe) + repeats,
        config={
            "task": recipe.task,
            "profile.runtimes": recipe.profile.runtimes,
            "profile.device": recipe.profile.device,
        },
        stamp=functools.partial(runtime_stamp, recipe),
        run=functools.partial(run, recipe, repeats),
    )


def runtime_stamp(recipe: Recipe) -> dict[str, str]:
    """Versions of the runtimes that judge, and the processor: int8 results and speed depend on both."""
    from exporters import PACKAGES
    from exporters.artifact import installed_versions
    from pipeline.environment import cpu_model

    packages = [PACKAGES[runtime][0] for runtime in (*runtimes(recipe), TORCH)]
    return installed_versions(*packages) | {"cpu": cpu_model() or "unknown"}


def run(recipe: Recipe, repeats: tuple[str, ...], context: Context) -> None:
    """Write evaluate.json (summaries and comparisons), outcomes-NAME.npz (per sample, both splits) and pictures.json
    (what the task shows of a few test images; without any there is no such file)."""
    data = prepared(recipe, context.inputs[DATA])
    task = task_of(recipe.task)
    subjects = judged(recipe, context.inputs) + [
        Judged(
            name=name,
            role="repeat",
            stage=name,
            format=TORCH,
            precision="fp32",
            runtime=TORCH,
            path=context.inputs[name] / distill.WEIGHTS,
        )
        for name in repeats
    ]
    outcomes: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    with opened(subjects, recipe, threads=recipe.profile.threads) as runners:
        for split, images, indices in (
            ("validation", data.validation_images, data.validation),
            ("test", data.source.test, data.test),
        ):
            context.say(f"evaluate: {len(subjects)} subjects on {len(indices):,} {split} images")
            with CountDisplay(f"evaluate: {split}", total=len(indices), done=0, say=context.say) as display:
                outcomes[split] = evaluate(runners, images, indices, task, on_chunk=display.step)
        for rows in outcomes["test"].values():
            rows.update({f"slice_{key}": column.codes[data.test] for key, column in data.source.slices.items()})
        shown = {subject.name: runners[subject.name] for subject in pictured(subjects)}
        picks = telling(outcomes["test"], task, *list(shown)[:: max(1, len(shown) - 1)])
        pictures = task.figures(shown, data.source.test, [(int(data.test[place]), why) for place, why in picks])
    if pictures:
        write_json(context.folder / PICTURES, pictures)
    index: dict[str, Any] = {"subjects": {}, "comparisons": []}
    for subject in subjects:
        index["subjects"][subject.name] = {
            split: task.summary(rows[subject.name]) for split, rows in outcomes.items()
        } | {"outcomes": write_outcomes(context.folder, subject.name, outcomes)}
        for against in BASELINES:
            if against == subject.name or against not in outcomes["test"] or subject.role == "repeat":
                continue
            for split, rows in outcomes.items():
                for row in task.comparisons(rows[subject.name], rows[against]):
                    index["comparisons"].append(
                        {"kind": row["kind"], "subject": subject.name, "against": against, "split": split, **row}
                    )
    write_json(context.folder / INDEX, index)


def pictured(subjects: list[Judged]) -> list[Judged]:
    """Whose answers are worth a picture: the teacher, the student, and each int8 form once (else the last form)."""
    found = [subject for subject in subjects if subject.name in ("teacher", "student")]
    artifacts = {subject.path: subject for subject in reversed(subjects) if subject.role == "artifact"}
    int8 = [subject for subject in artifacts.values() if subject.precision == "int8"][::-1]
    return [*found, *(int8[:MOST_PICTURED] or list(artifacts.values())[:1])]


def telling(
    outcomes: dict[str, dict[str, np.ndarray]], task: Any, first: str = "", last: str = ""
) -> list[tuple[int, str]]:
    """(place, why) of up to three test images: where `last` loses most against `first`, where it does as usual, and
    where it wins most, by the task's own metric."""
    if not last or first == last or task.metric not in outcomes[last]:  # a task of yes and no has no pictures
        return []
    values = [np.asarray(outcomes[name][task.metric], np.float64) for name in (last, first)]
    order = np.argsort(values[0] - values[1], kind="stable")
    places = {int(order[0]): f"{last} loses most against {first}", int(order[len(order) // 2]): "as usual"}
    return list((places | {int(order[-1]): f"{last} does best against {first}"}).items())


def write_outcomes(folder: Path, name: str, outcomes: dict[str, dict[str, dict[str, np.ndarray]]]) -> str:
    """Raw outcomes beside the report, deterministic bytes; returns the file's name."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        f"{split}_{key}": values for split, rows in outcomes.items() for key, values in rows[name].items()
    }
    np.savez(buffer, **arrays)
    file = f"outcomes-{name}.npz"
    write_bytes(folder / file, buffer.getvalue())
    return file


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / INDEX).read_text())
