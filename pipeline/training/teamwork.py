"""Who does what when torchrun starts several processes, and what each says when one of them is lost.

Rank 0 runs the command exactly as a process alone does. When a stage comes in which all take part, it tells the others
the recipe, the stage and its folders; these build the same stage from the recipe and run it with it, writing nothing.
In between they wait without using the processor. Imports torch only where there are several processes.
"""

from __future__ import annotations

import functools
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.environment import several
from pipeline.errors import RecipeError, UserError
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage

if TYPE_CHECKING:
    from pipeline.training.distributed import Ranks

RESUME = "run the same command again to resume"
NOTICE_S = 5.0  # within which everyone notices that a stage has ended, or who is lost
APPEAR_S = 60.0  # within which a network's filesystem shows a new folder
ENDED, LOST = "ended", "lost"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage in which all take part; folders are absolute."""

    recipe: Recipe
    stage: str
    folder: Path
    inputs: Mapping[str, Path]


def led(stage: Stage, recipe: Recipe) -> Stage:
    """`stage` as rank 0 runs it: where all take part, the others are called."""
    if not (stage.together and several()):
        return stage
    from pipeline.training.distributed import current

    ranks = current()
    if ranks.world == 1 or not ranks.leads:
        return stage
    return replace(stage, run=functools.partial(lead, ranks, stage, recipe))


def lead(ranks: Ranks, stage: Stage, recipe: Recipe, context: Context) -> None:
    """Run a stage on rank 0 with all others. Raises `UserError` when one is lost, with its reason if it left one."""
    from pipeline.training.distributed import is_loss

    check_batches(recipe, ranks.world)
    ranks.tasks += 1
    inputs = {name: path.resolve() for name, path in context.inputs.items()}
    ranks.share(Task(recipe=recipe, stage=stage.name, folder=context.folder.resolve(), inputs=inputs))
    try:
        stage.run(context)
    except BaseException as error:
        if is_loss(error):
            ranks.apart = True
            why = ranks.noted(LOST, within_s=0.5)
            ranks.last_word()
            raise UserError(lost(stage.name, error) if why is None else f"{why}; {RESUME}") from error
        # What is wrong here is wrong everywhere, unless it is rank 0's disk: the others note it and wait for a task.
        ranks.note(ENDED)
        until = time.monotonic() + (NOTICE_S if isinstance(error, Exception) else 0.0)
        for rank in range(1, ranks.world):
            if ranks.noted(f"{ENDED} on {rank}", within_s=max(0.0, until - time.monotonic())) is None:
                ranks.apart = True
        if ranks.apart:
            ranks.last_word()
        raise


def follow(ranks: Ranks, stages: Callable[[Recipe], Sequence[Stage]]) -> None:
    """Take part in one task after another until rank 0 has no more. `stages`: those of a recipe, in order.

    Raises `UserError` when this process or another one cannot go on.
    """
    from pipeline.training.distributed import is_loss

    doing = "waiting for rank 0"
    try:
        while (task := ranks.share()) is not None:
            ranks.tasks += 1
            doing = task.stage
            try:
                help_with(task, stages(task.recipe))
            except Exception as error:
                if is_loss(error):
                    raise
                ranks.note(f"{ENDED} on {ranks.rank}")
                if ranks.noted(ENDED, within_s=NOTICE_S / 2) is not None:
                    continue  # rank 0 has the same trouble and says so
                why = f"rank {ranks.rank} on {socket.gethostname()}: {reason(error)}"
                ranks.note(LOST, why)
                raise UserError(f"{why}; {RESUME}") from error
    except RuntimeError as error:
        if not is_loss(error):
            raise
        raise UserError(lost(doing, error)) from error


def help_with(task: Task, stages: Sequence[Stage]) -> None:
    """Run the stage of the task. Raises `UserError` for a folder that this machine does not see."""
    for folder in task.inputs.values():
        until = time.monotonic() + APPEAR_S
        while not folder.is_dir():
            if time.monotonic() > until:
                raise UserError(f"{folder} is not here; several machines need an --out that all of them see")
            time.sleep(0.1)
    stage = next(stage for stage in stages if stage.name == task.stage)
    stage.run(Context(stage=stage, folder=task.folder, inputs=task.inputs, say=unsaid, leads=False))


def check_batches(recipe: Recipe, world: int) -> None:
    """Refuse a batch that cannot be cut evenly, before the first hour of training. Raises `RecipeError`."""
    found: dict[str, object] = {"distill": recipe.distill.batch_size}
    if recipe.teacher.trained:
        found["teacher.train"] = recipe.teacher.train.batch_size
    for index, generation in enumerate(recipe.generation):
        found[f"generation[{index}].distill"] = generation.distill.get("batch_size")
    for where, size in found.items():
        if isinstance(size, int) and size % world:
            lower, upper = size // world * world, -(-size // world) * world
            raise RecipeError(
                f"{where}.batch_size = {size} does not divide by {world} processes; "
                f"set it to {f'{lower} or ' if lower else ''}{upper}, or start another number of processes"
            )


def lost(doing: str, error: BaseException) -> str:
    return f"{doing}: another process ended early ({reason(error)}); see its own output; {RESUME}"


def reason(error: BaseException) -> str:
    """One line; of an error that is not the user's its first sentence, without the place in the source before it."""
    if isinstance(error, UserError):
        return str(error)
    line = re.sub(r"^\[\S+:\d+\] ", "", (str(error).strip().splitlines() or [""])[0])
    kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
    return f"{kind}{line.partition('. ')[0].rstrip('.')}".rstrip(": ")


def unsaid(line: str) -> None:
    """Rank 0 says it."""
