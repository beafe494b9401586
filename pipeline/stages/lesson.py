"""Lessons: who is taught by whom. Generations come one after another, and the shipped student is the last pupil."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import format_bytes
from pipeline.errors import UserError
from pipeline.recipe import Distill, LossTerm, Recipe, Student
from pipeline.recipe_modes import FROM_TEACHER, merged
from pipeline.stages.data import Prepared
from pipeline.stages.network import network
from pipeline.tasks import task_of
from pipeline.teacher_table.decide import view_count
from pipeline.teacher_table.storage import ITEM_BYTES

if TYPE_CHECKING:
    from pipeline.distillers.learner import Learner
    from pipeline.distillers.teacher import Network, TeacherOutputs

STUDENT = "distill"
GENERATION = "generation"  # and its number, from 1
TEACHER = "teacher"
TEACHER_WEIGHTS = "teacher.safetensors"
STUDENT_WEIGHTS = "student.safetensors"


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One network being taught: `name` is its stage, `teachers` the stages of those who teach it, the first of them
    with the network `teacher_model`, `weights` their shares in the mean of logits. `download`: published weights may be
    fetched. `task`: the recipe's. `readers`: trainings that a sweep knows will read its table."""

    name: str
    student: Student
    distill: Distill
    teachers: tuple[str, ...]
    weights: tuple[float, ...]
    teacher_model: str
    task: str
    download: bool = False
    readers: int = 1

    @property
    def key(self) -> str:
        """Of its network in the recipe: `student` or `generation.0`."""
        return "student" if self.name == STUDENT else f"generation.{int(self.name.removeprefix(GENERATION)) - 1}"

    @property
    def distill_key(self) -> str:
        return "distill" if self.name == STUDENT else f"{self.key}.distill"

    @property
    def taught(self) -> bool:
        """Whether somebody from outside teaches: any term looks at a teacher, and the mode is offline."""
        from pipeline.losses import NEEDS_TEACHER

        terms = self.distill.losses
        return self.distill.mode == "offline" and any(t.loss in NEEDS_TEACHER and t.weight > 0 for t in terms)

    @property
    def foreign_features(self) -> bool:
        """Whether features are compared with those of a network from elsewhere (`torchvision:`, spandrel, a user's),
        whose layers may work in place; those of our own never do. What such features taught or filled before they were
        copied may be wrong, so the stages that depend on them have a version of their own."""
        from pipeline.losses import TAPS
        from pipeline.models import MODELS, PRUNED

        family = self.teacher_model.removeprefix(f"{PRUNED}:").partition("?")[0]
        own = family in MODELS and "spandrel" not in MODELS[family]
        return self.taught and not own and any(t.loss in TAPS and t.weight > 0 for t in self.distill.losses)


def lessons(recipe: Recipe) -> tuple[Lesson, ...]:
    """Every generation, and the student last. The first is taught by the teachers, each other one by the one before."""
    others = recipe.teacher.others
    teachers = (TEACHER, *(further(index) for index in range(len(others))))
    shares = (1.0, *(other.weight for other in others))
    model = recipe.teacher.model
    found: list[Lesson] = []
    for index, generation in enumerate(recipe.generation):
        student = Student(model=generation.model, weights=generation.weights)
        distill = merged(recipe.distill, generation.distill, where=f"generation.{index}")
        name = f"{GENERATION}{index + 1}"
        found.append(
            Lesson(
                name=name,
                student=student,
                distill=distill,
                teachers=teachers,
                weights=shares,
                teacher_model=model,
                task=recipe.task,
                download=recipe.data.download,
            )
        )
        teachers, shares, model = (name,), (1.0,), generation.model
    last = Lesson(
        name=STUDENT,
        student=recipe.student,
        distill=recipe.distill,
        teachers=teachers,
        weights=shares,
        teacher_model=model,
        task=recipe.task,
        download=recipe.data.download,
    )
    return (*found, last)


def further(index: int) -> str:
    """The stage of the teacher `[[teacher.others]]` number `index` (0-based)."""
    return f"{TEACHER}{index + 2}"


def seed_for(name: str, seed: int) -> int:
    """The seed of a network that stands beside others of the run's `seed`: two that begin with the same weights and see
    the same batches would end as one. The neighbouring seeds belong to repeats."""
    return seed + zlib.crc32(name.encode())


def alone(task: str, distill: Distill) -> tuple[LossTerm, ...]:
    """The objective of who has no teacher: of a teacher itself, and of a control."""
    return task_of(task).alone(distill.losses)


def stated(terms: tuple[LossTerm, ...]) -> dict[str, Any]:
    """What a stage of that objective depends on: nothing where it is the labels alone, as it was before there were
    others, so that such stages stay fresh."""
    said = [term.model_dump(mode="json") for term in terms]
    plain = [LossTerm.model_validate({"loss": "cross_entropy", "weight": 1.0}).model_dump(mode="json")]
    return {} if said == plain else {"objective": said}


def learner_of(
    lesson: Lesson,
    student: Network,
    data: Prepared,
    *,
    teacher: Network | None,
    seed: int,
    control: bool = False,
) -> Learner:
    """What is trained in this lesson: one student, peers, or a network with exits; for a control, the student alone.

    `teacher` is looked at for the shapes of its features; peers are drawn from seeds of their own, or have weights.
    Raises `RecipeError` with one line for module paths that do not exist and features that cannot be compared.
    """
    from pipeline.distillers.exits import Exits
    from pipeline.distillers.mutual import Mutual
    from pipeline.distillers.offline import offline
    from pipeline.models.finetune import freeze

    distill = lesson.distill
    freeze(student.module, distill.freeze, where=f"{lesson.distill_key}.freeze")
    if control or (distill.mode == "offline" and not lesson.taught):
        return offline(student, alone(lesson.task, distill) if control else distill.losses)
    sizes: dict[str, Any] = {
        "input_size": data.input_size,
        "samples": len(data.distillation_train),
        "num_classes": data.answer_shape[0],
        "end_on_plateau": distill.end_on_plateau,
    }
    if distill.mode == "online":
        peers = [peer_of(lesson, index, data, seed=seed) for index in range(len(distill.peers))]
        return Mutual(student, peers, distill.losses, **sizes)
    if distill.mode == "self":
        return Exits(student, distill.exits, distill.losses, **sizes)
    return offline(student, distill.losses, teacher=teacher.module if teacher else None, **sizes)


def student_of(lesson: Lesson, data: Prepared, *, seed: int, weights: str) -> Network:
    """The network to be taught, with `weights` where there are some."""
    from pipeline.distillers.teacher import Network

    part = Student(model=lesson.student.model, weights=weights)
    module = network(part, data, seed=seed, where=f"{lesson.key}.weights", head="skip", download=lesson.download)
    return Network(module=module, mean=data.mean, std=data.std)


def peer_of(lesson: Lesson, index: int, data: Prepared, *, seed: int) -> Network:
    """The peer of that number (0-based), with weights that no other network of this seed or a neighbouring one has."""
    from pipeline.distillers.teacher import Network

    own = seed_for(f"peer{index + 1}", seed)
    where = f"{lesson.distill_key}.peers.{index}.weights"
    module = network(lesson.distill.peers[index], data, seed=own, where=where, head="skip", download=lesson.download)
    return Network(module=module, mean=data.mean, std=data.std)


def rehearse(recipe: Recipe, data: Prepared) -> None:
    """Build every teacher and lesson with untrained networks, so that a mistake is found before the first hours."""
    from pipeline.distillers.teacher import Network

    download = recipe.data.download
    head = "skip" if recipe.teacher.finetune else "strict"
    for index, other in enumerate(recipe.teacher.others):
        part = Student(model=other.model, weights=other.weights)
        network(part, data, seed=recipe.seed, where=f"teacher.others.{index}.weights", head=head, download=download)
    for lesson in lessons(recipe):
        weights = lesson.student.weights
        student = student_of(lesson, data, seed=recipe.seed, weights="" if weights == FROM_TEACHER else weights)
        model = Student(model=lesson.teacher_model, weights="")
        teacher = Network(module=network(model, data, seed=recipe.seed), mean=data.mean, std=data.std)
        learner_of(lesson, student, data, teacher=teacher, seed=recipe.seed)


def check_disk(recipe: Recipe, data: Prepared, folder: Path) -> None:
    """Refuse a disk that cannot hold the tables asked for, before their teachers are trained; `folder` lies in the
    store. A lower bound: the logits alone, less what tables of the store hold already. Raises `UserError`."""
    from pipeline.manifest import bytes_in
    from pipeline.teacher_table.build import needed_bytes

    samples, classes = len(data.distillation_train), data.answer_shape[0]
    total = 0
    for lesson in lessons(recipe):
        settings = lesson.distill
        if lesson.taught and settings.teacher_outputs == "table" and not settings.table:
            slices = min(view_count(settings.augment) or settings.epochs, settings.epochs)
            total += slices * samples * classes * ITEM_BYTES
    held = sum(bytes_in(path) for path in folder.parent.glob("table*"))
    free = shutil.disk_usage(folder).free
    if total > held and free < (needed := needed_bytes(total - held)):
        raise UserError(
            f"table: {folder.parent} needs at least {format_bytes(needed)} for the teacher's answers to {samples:,} "
            f"images, {format_bytes(free)} are free; free some, set teacher_outputs = 'live', or train fewer epochs"
        )


def checkpoint(inputs: Mapping[str, Path], stage: str) -> Path:
    """The weights of who teaches: a teacher, or the generation before."""
    return inputs[stage] / (TEACHER_WEIGHTS if stage.startswith(TEACHER) else STUDENT_WEIGHTS)


def tutors(lesson: Lesson, inputs: Mapping[str, Path]) -> list[Network]:
    """Those who teach, in eval mode, each with its own preprocessing."""
    from pipeline.distillers.teacher import Network
    from pipeline.models.checkpoint import load_checkpoint

    found = []
    for stage in lesson.teachers:
        module, meta = load_checkpoint(checkpoint(inputs, stage))
        found.append(Network(module=module, mean=meta.mean, std=meta.std))
    return found


def live_teacher(lesson: Lesson, networks: Sequence[Network], *, taps: Sequence[str] = ()) -> TeacherOutputs:
    """Those who teach, answering for any view on the device and in the precision of the lesson."""
    from pipeline.distillers.learner import DTYPES
    from pipeline.distillers.teacher import AveragedTeachers, LiveTeacher
    from pipeline.training.train import default_device

    settings = lesson.distill
    teachers = [
        LiveTeacher(
            network,
            dtype=DTYPES[settings.precision],
            device=default_device(),
            channels_last=settings.channels_last,
            compile=settings.compile,
            taps=taps if index == 0 else (),
        )
        for index, network in enumerate(networks)
    ]
    return AveragedTeachers(teachers, lesson.weights) if len(teachers) > 1 else teachers[0]
