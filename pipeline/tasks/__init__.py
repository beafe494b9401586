"""Tasks by name: metric, outcomes and gate unit of each. Add a task: one file and one row here.

`pipeline.tasks.protocol` says what a task is; README.md in this folder shows how a dense one is added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import nearest
from pipeline.registry import load

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.tasks.protocol import Task

TASKS = {
    "classification": "pipeline.tasks.classification:Classification",
    "edges": "pipeline.tasks.edges:Edges",
    "super-resolution": "pipeline.tasks.super_resolution:SuperResolution",
}


def task_of(name: str) -> Task:
    """The task of that name, which `TASKS` has."""
    return load(TASKS[name])


def smoke_of(name: Any) -> dict[str, Any]:
    """What --smoke lays over a recipe of this task; of an unknown one nothing, since validation says what is wrong."""
    name = "classification" if name is None else name
    return dict(task_of(name).smoke) if isinstance(name, str) and name in TASKS else {}


def check_task(recipe: Recipe) -> None:
    """Refuse a recipe whose data or losses are made for other answers than its task gives.

    Raises ValueError with one line that begins with the key.
    """
    from pipeline.data import CLASSES, SERVES, SOURCES
    from pipeline.losses import ANSWERS
    from pipeline.recipe_modes import chain

    task, data = task_of(recipe.task), recipe.data.name
    served = SERVES.get(data, CLASSES)
    if recipe.task not in served:
        fitting = [name for name in SOURCES if recipe.task in SERVES.get(name, CLASSES)]
        raise ValueError(
            f"data.name: {data!r} serves {' and '.join(repr(name) for name in served)}, and the task is "
            f"{recipe.task!r}; take {' or '.join(repr(name) for name in fitting) or 'a data set made for it'}"
        )
    known = [name for name, kind in ANSWERS.items() if kind in (task.answers, "both")]
    for place, _, distill in chain(recipe):
        where = "distill" if place == "student" else f"{place}.distill"
        for index, term in enumerate(distill.losses):
            if term.weight > 0 and term.loss not in known:
                raise ValueError(
                    f"{where}.losses.{index}: loss {term.loss!r} compares {ANSWERS[term.loss]}, and the task "
                    f"{recipe.task!r} gives {task.answers}{nearest(term.loss, known)}"
                )
    task.check(recipe)
