"""Teachers: trained by the recipe or loaded; then checked before anything is learned from them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pipeline.atomic import write_json
from pipeline.models import source_stamp
from pipeline.recipe import Recipe, Teacher
from pipeline.stage import Context, Stage
from pipeline.stages.data import NAME as DATA
from pipeline.stages.data import prepared
from pipeline.stages.lesson import TEACHER, TEACHER_WEIGHTS, alone, check_disk, further, rehearse, seed_for, stated
from pipeline.stages.network import network, save_network
from pipeline.tasks import task_of

NAME = TEACHER
CHECK = "teacher-check"
WEIGHTS = TEACHER_WEIGHTS
CHECKED = "check.json"
TRAINING = "training.json"  # curves with seconds: what a rebuilt teacher may differ in


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """Each teacher and its check. The first one is the baseline of the report; the others only teach."""
    found = [stage(recipe, NAME, recipe.teacher), check_stage(recipe, NAME, recipe.teacher)]
    for index, other in enumerate(recipe.teacher.others):
        own = {"model": other.model, "weights": other.weights, "mean": other.mean, "std": other.std, "others": ()}
        part = recipe.teacher.model_copy(update=own)
        found += [stage(recipe, further(index), part), check_stage(recipe, further(index), part)]
    return tuple(found)


def check_name(name: str) -> str:
    return f"{name}-check"


def with_check(name: str) -> tuple[str, ...]:
    """The stages that those who learn from `name` need; a generation has no check of its own."""
    return (name, check_name(name)) if name.startswith(NAME) else (name,)


def stage(recipe: Recipe, name: str, part: Teacher) -> Stage:
    seed = recipe.seed if name == NAME else seed_for(name, recipe.seed)
    config = part.model_dump(
        mode="json", exclude={"min_accuracy", "check", "others"} | (set() if part.trained else {"train"})
    )
    return Stage(
        name=name,
        version=1,
        needs=(DATA,),
        config={"teacher": config, "seed": seed} | (stated(alone(recipe.task, recipe.distill)) if part.trained else {}),
        stamp=lambda: source_stamp(part.model, part.weights),
        volatile=(TRAINING,),
        run=functools.partial(run, recipe, part, seed),
        together=part.trained,
    )


def run(recipe: Recipe, part: Teacher, seed: int, context: Context) -> None:
    """Write teacher.safetensors with its preprocessing, and training.json when it was trained here."""
    from pipeline.distillers.offline import offline
    from pipeline.distillers.teacher import Network
    from pipeline.training.train import TrainData, train

    data = prepared(recipe, context.inputs[DATA])
    where = NAME if context.stage.name == NAME else f"{NAME}.others.{int(context.stage.name.removeprefix(NAME)) - 2}"
    rehearse(recipe, data)  # a student or lesson that cannot be is refused before the teacher's hours
    check_disk(recipe, data, context.folder)
    head = "skip" if part.finetune else "strict"
    module = network(part, data, seed=seed, where=f"{where}.weights", head=head, download=recipe.data.download)
    mean, std = part.mean or data.mean, part.std or data.std
    if part.weights:
        context.say(f"{context.stage.name}: {part.model} from {Path(part.weights).name}")
    if part.trained:
        task = task_of(recipe.task)
        result = train(
            offline(Network(module=module, mean=mean, std=std), alone(recipe.task, recipe.distill)),
            part.train,
            TrainData(
                images=data.source.train,
                train=data.train,
                validation=data.validation,
                validation_images=data.validation_images,
                num_classes=data.answer_shape[0],
                workers=recipe.data.workers,
                score=task.score,
                show=task.show,
            ),
            folder=context.resume_folder,
            key=context.folder.name,
            seed=seed,
            say=context.say,
            label=context.stage.name,
        )
        if not context.leads:
            return
        write_json(context.folder / TRAINING, training_record(result))
    save_network(context.folder / WEIGHTS, module, part, data, mean=mean, std=std)


def check_stage(recipe: Recipe, name: str, part: Teacher) -> Stage:
    """Apart from the teacher itself, so that a refused teacher is not trained again for a lower bar."""
    return Stage(
        name=check_name(name),
        version=1,
        needs=(DATA, name),
        config={"teacher": part.model_dump(mode="json", include={"min_accuracy", "check"})},
        volatile=(CHECKED,),
        run=functools.partial(run_check, recipe, name, part),
    )


def run_check(recipe: Recipe, name: str, part: Teacher, context: Context) -> None:
    """Write passed.json, all that later stages depend on, and check.json with the figures.

    Raises UserError, naming the likely cause, for a teacher that nothing should learn from (check = "refuse").
    """
    from pipeline.models.checkpoint import load_checkpoint

    data = prepared(recipe, context.inputs[DATA])
    module, meta = load_checkpoint(context.inputs[name] / WEIGHTS)
    found = task_of(recipe.task).check_teacher(module, meta, data.validation_images, data.validation, part)
    if part.check == "refuse":
        found.refuse()
    figures = {"accuracy": found.accuracy, "n": found.n, "chance": found.chance, "problems": list(found.problems)}
    write_json(context.folder / CHECKED, figures)
    write_json(context.folder / "passed.json", {"passed": True})
    context.say(
        f"{name}: {found.sentence}; "
        + (f"not fit to teach, and not refused: {'; '.join(found.problems)}" if found.problems else "fit to teach")
    )


def training_record(result: Any) -> dict[str, Any]:
    """The report's `training` entry of a TrainResult."""
    return {
        "epochs": len(result.curve),
        "s_per_epoch": result.total_s / max(1, len(result.curve)),
        "total_s": result.total_s,
        "teacher_share": result.teacher_share,
        "best_epoch": result.best_epoch,
        "best_accuracy": result.best_accuracy,
        "curve": result.curve,
    }
