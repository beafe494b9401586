"""Distill: each generation and the student with its teacher; the control is the same student, budget and seed without
one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.atomic import write_json
from pipeline.losses import files
from pipeline.models import file_stamp, source_stamp
from pipeline.recipe import LossTerm, Recipe, Student
from pipeline.stage import Context, Stage
from pipeline.stages import table, teacher
from pipeline.stages.data import NAME as DATA
from pipeline.stages.data import Prepared, prepared
from pipeline.stages.lesson import (
    FROM_TEACHER,
    GENERATION,
    STUDENT,
    STUDENT_WEIGHTS,
    Lesson,
    alone,
    checkpoint,
    learner_of,
    lessons,
    live_teacher,
    rehearse,
    seed_for,
    stated,
    student_of,
    tutors,
)
from pipeline.stages.network import save_network
from pipeline.tasks import task_of

if TYPE_CHECKING:
    from pipeline.distillers.learner import Learner
    from pipeline.distillers.teacher import Network, TeacherOutputs
    from pipeline.training.train import TrainData

NAME = STUDENT
CONTROL = "control"
WEIGHTS = STUDENT_WEIGHTS
TRAINING = "training.json"
NOT_LEARNT_FROM = {"control", "repeats", "teacher_outputs", "table"}
ONLY_TAUGHT = {"losses", "mode", "peers", "exits", "end_on_plateau"}  # a control depends on none of these


def stages(recipe: Recipe, readers: Mapping[str, int] | None = None) -> tuple[Stage, ...]:
    """Tables, generations, the student and, unless switched off, its control, for every seed asked for; the first
    student is shipped. `readers`: table -> trainings known to read it."""
    runs: list[Stage] = []
    for lesson in lessons(recipe):
        if lesson.taught and lesson.distill.teacher_outputs != "live":
            known = (readers or {}).get(table.stage_name(lesson), 1)
            runs.append(table.stage(recipe, replace(lesson, readers=known)))
        if lesson.name != NAME:
            runs.append(stage(recipe, lesson, lesson.name, 0))
    for repeat in range(recipe.distill.repeats):
        runs.append(stage(recipe, lesson, NAME, repeat))
        if recipe.distill.control:
            runs.append(stage(recipe, lesson, CONTROL, repeat))
    return tuple(runs)


def generations(recipe: Recipe) -> tuple[str, ...]:
    """The stages between teacher and student, in the order of teaching."""
    return tuple(f"{GENERATION}{index + 1}" for index in range(len(recipe.generation)))


def stage_name(role: str, repeat: int) -> str:
    return role if repeat == 0 else f"{role}-seed{repeat}"


def stage(recipe: Recipe, lesson: Lesson, role: str, repeat: int) -> Stage:
    """A control depends neither on the teacher nor on losses that ask one: another teacher leaves it fresh."""
    control = role == CONTROL
    seed = recipe.seed + repeat if role in (NAME, CONTROL) else seed_for(role, recipe.seed)
    needs = [DATA]
    if lesson.student.weights == FROM_TEACHER or (lesson.taught and not control):
        needs += [name for each in lesson.teachers for name in teacher.with_check(each)]
    if lesson.taught and not control and lesson.distill.teacher_outputs != "live":
        needs.append(table.stage_name(lesson))
    config: dict[str, Any] = {
        "student": lesson.student.model_dump(mode="json"),
        "distill": lesson.distill.model_dump(
            mode="json", exclude=NOT_LEARNT_FROM | (ONLY_TAUGHT if control else set())
        ),
        "seed": seed,
    }
    if control:
        config |= stated(alone(lesson.task, lesson.distill))
    if not control and len(lesson.weights) > 1:
        config["teacher.weights"] = lesson.weights
    own = "" if lesson.student.weights == FROM_TEACHER else lesson.student.weights
    terms = alone(lesson.task, lesson.distill) if control else lesson.distill.losses
    return Stage(
        name=stage_name(role, repeat),
        version=3 if lesson.foreign_features and not control else 2,
        needs=tuple(needs),
        config=config,
        stamp=lambda: stamp(lesson, own, () if control else lesson.distill.peers, terms),
        volatile=(TRAINING,),
        run=functools.partial(run, recipe, lesson, role, seed),
        together=True,
    )


def stamp(lesson: Lesson, weights: str, peers: Sequence[Student], terms: Sequence[LossTerm]) -> Any:
    own: dict[str, Any] = {**source_stamp(lesson.student.model, weights)}
    if peers:
        own["peers"] = [source_stamp(peer.model, peer.weights) for peer in peers]
    if read := [file for term in terms for file in files(term.loss, term.options)]:
        own["losses"] = [file_stamp(file) for file in read]
    return own


def run(recipe: Recipe, lesson: Lesson, role: str, seed: int, context: Context) -> None:
    """Write student.safetensors with its preprocessing, and training.json (curves, seconds)."""
    from pipeline.training.train import train

    data = prepared(recipe, context.inputs[DATA])
    if lesson.name != NAME:
        rehearse(recipe, data)  # a mistake in a later lesson is found before this one's hours
    weights = lesson.student.weights
    if weights == FROM_TEACHER:
        weights = str(checkpoint(context.inputs, lesson.teachers[0]))
    student = student_of(lesson, data, seed=seed, weights=weights)
    taught = lesson.taught and role != CONTROL
    networks = tutors(lesson, context.inputs) if taught else []
    first = networks[0] if networks else None
    learner = learner_of(lesson, student, data, teacher=first, seed=seed, control=role == CONTROL)
    result = train(
        learner,
        lesson.distill,
        train_data(recipe, data, taught=role != CONTROL),
        folder=context.resume_folder,
        key=context.folder.name,
        seed=seed,
        say=context.say,
        label=context.stage.name,
        teacher=answers(lesson, networks, learner, data, context) if taught else None,
    )
    if not context.leads:
        return
    write_json(context.folder / TRAINING, teacher.training_record(result))
    save_network(context.folder / WEIGHTS, student.module, lesson.student, data, mean=data.mean, std=data.std)


def train_data(recipe: Recipe, data: Prepared, *, taught: bool) -> TrainData:
    """Images without labels are for those who are taught."""
    from pipeline.training.train import TrainData

    task = task_of(recipe.task)
    return TrainData(
        images=data.distillation_images if taught else data.source.train,
        train=data.distillation_train if taught else data.train,
        validation=data.validation,
        validation_images=data.validation_images,
        num_classes=data.answer_shape[0],
        workers=recipe.data.workers,
        score=task.score,
        show=task.show,
    )


def answers(
    lesson: Lesson, networks: list[Network], learner: Learner, data: Prepared, context: Context
) -> TeacherOutputs:
    """The teacher's outputs for every view: from the table where there is one, else live."""
    live = live_teacher(lesson, networks, taps=learner.teacher_taps)
    if lesson.distill.teacher_outputs == "live":
        return live
    return table.answers(lesson, context.inputs, live, data, taps=learner.teacher_taps, say=context.say)
