"""Table: the teacher's answers to every view of a lesson, computed once, or the decision to ask it at every step."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import write_json
from pipeline.errors import RecipeError
from pipeline.manifest import sha256_file, sha256_json
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage
from pipeline.stages import teacher
from pipeline.stages.data import NAME as DATA
from pipeline.stages.data import Prepared, prepared
from pipeline.stages.lesson import FROM_TEACHER, STUDENT, Lesson, checkpoint, learner_of, live_teacher, rehearse, tutors
from pipeline.stages.network import network
from pipeline.tasks import task_of
from pipeline.teacher_table.decide import FORMS, LIVE_FOR_PICTURES, Decision, decide, form_of, live_for_maps, view_count
from pipeline.teacher_table.storage import HEADER, INDEX, read_header

if TYPE_CHECKING:
    import numpy as np

    from pipeline.data.source import Images
    from pipeline.distillers.teacher import Network, TeacherOutputs
    from pipeline.teacher_table.key import Form, Key

NAME = "table"
FORM = "form.json"  # live, finite or replay: what later stages depend on
DECISION = "decision.json"  # the same with its reason: measured, so it differs from build to build
BATCH_PIXELS = {"cpu": 1 << 17, "cuda": 1 << 22}  # a CPU is twice as fast while activations stay in its cache


def stage_name(lesson: Lesson) -> str:
    return NAME if lesson.name == STUDENT else f"{NAME}-{lesson.name}"


def stage(recipe: Recipe, lesson: Lesson) -> Stage:
    """Depends neither on the student nor on what the losses make of the logits; on the epochs only where each epoch
    has a slice of its own; of answers that are never stored on nothing at all. Raises `RecipeError` for a table that is
    asked for and could not answer."""
    distill = lesson.distill
    maps, outputs = tapped_maps(lesson), stored_features(lesson)
    if maps and (distill.table or distill.teacher_outputs == "table"):
        raise RecipeError(
            f"distill.teacher_outputs: a table holds no feature maps, and {lesson.name} compares those of "
            f"{', '.join(maps)}; set teacher_outputs = 'live' or 'auto', and no table"
        )
    config: dict[str, Any] = {
        "teacher_outputs": distill.teacher_outputs,
        "table": distill.table,
        "augment": distill.augment.model_dump(mode="json"),
        "precision": distill.precision,
        "channels_last": distill.channels_last,
        "outputs": outputs,
    }
    if not stores(lesson):
        config = {"teacher_outputs": distill.teacher_outputs}
    elif maps:
        config = {"teacher_outputs": distill.teacher_outputs, "maps": maps}
    elif form_of(view_count(distill.augment), distill.epochs) == "replay":
        config["epochs"] = distill.epochs
    else:
        del config["augment"]["seed"]
    if len(lesson.weights) > 1:
        config["teacher.weights"] = lesson.weights
    return Stage(
        name=stage_name(lesson),
        version=3 if lesson.foreign_features else 2,
        needs=(DATA, *(name for each in lesson.teachers for name in teacher.with_check(each))),
        config={"distill": config},
        stamp=(lambda: elsewhere_stamp(Path(distill.table))) if distill.table else None,
        volatile=(DECISION,),
        run=functools.partial(run, recipe, lesson),
        together=True,
    )


def elsewhere_stamp(folder: Path) -> dict[str, str | None]:
    """Content of a table that was made elsewhere, by its header and its index of hashes."""
    paths = {name: folder / name for name in (HEADER, INDEX)}
    return {name: sha256_file(path) if path.is_file() else None for name, path in paths.items()}


def run(recipe: Recipe, lesson: Lesson, context: Context) -> None:
    """Write form.json, decision.json and, unless the decision is for a live teacher, the table itself.

    Raises UserError: a table from elsewhere that does not fit, a disk too small for one that was asked for.
    """
    from pipeline.teacher_table.build import build
    from pipeline.training.distributed import current
    from pipeline.training.train import default_device

    if not stores(lesson):
        if context.leads:
            _write(context, LIVE_FOR_PICTURES)
        return
    if tapped_maps(lesson):
        if context.leads:
            _write(context, live_for_maps(tapped_maps(lesson)))
        return
    data = prepared(recipe, context.inputs[DATA])
    rehearse(recipe, data)  # a lesson that cannot be is refused before the table's hours
    images, ids = pool(data)
    networks = tutors(lesson, context.inputs)
    live = live_teacher(lesson, networks, taps=stored_features(lesson))
    if lesson.distill.table:
        if not context.leads:
            return
        opened(lesson, Path(lesson.distill.table), context.inputs, live, data, hashes=True)
        form = read_header(Path(lesson.distill.table))["key"]["form"]
        _write(context, Decision(form=form, reason=f"{form} table made elsewhere: {lesson.distill.table}"))
        return
    ranks = current()
    decision = ranks.share(_decided(recipe, lesson, context, data, networks, live) if context.leads else None)
    if decision.form == "live":
        return
    height, width, _ = images.shape
    build(
        context.folder,
        key_of(lesson, decision.form, context.inputs, data, outputs=stored_features(lesson)),
        live,
        images,
        ids,
        slices=slices_of(lesson, decision.form),
        batch_size=max(16, min(1024, BATCH_PIXELS[default_device().type] // (height * width))),
        workers=recipe.data.workers,
        device=default_device(),
        say=context.say,
        label=context.stage.name,
        teacher_accuracy=_accuracy(lesson, context),
        rank=ranks.rank,
        world=ranks.world,
        barrier=ranks.barrier,
    )


def answers(
    lesson: Lesson,
    inputs: Mapping[str, Path],
    live: TeacherOutputs,
    data: Prepared,
    *,
    taps: Sequence[str],
    say: Callable[[str], None],
) -> TeacherOutputs:
    """What the learner asks at every view: the table where the stage decided for one, after a check of random rows
    against `live`; else `live` itself."""
    folder = inputs[stage_name(lesson)]
    form = json.loads((folder / FORM).read_text())["form"]
    if form == "live":
        return live
    assert set(taps) <= set(stored_features(lesson)), f"{taps} are not in the table"
    where = Path(lesson.distill.table) if lesson.distill.table else folder
    found = opened(lesson, where, inputs, live, data)
    say(f"{lesson.name}: the teacher's answers are read from a {form} table")
    return found


def opened(
    lesson: Lesson,
    folder: Path,
    inputs: Mapping[str, Path],
    live: TeacherOutputs,
    data: Prepared,
    *,
    hashes: bool = False,
) -> TeacherOutputs:
    """The table in `folder`, after its key, its files and random rows of it have been checked."""
    from pipeline.teacher_table.table import Table
    from pipeline.training.train import default_device

    form: Form = read_header(folder)["key"].get("form", "replay")
    images, ids = pool(data)
    slices = slices_of(lesson, form)
    key = key_of(lesson, form, inputs, data, outputs=stored_features(lesson))
    found = Table(folder, key, ids, slices=slices, hashes=hashes)
    found.check(live, images, slices=slices, device=default_device())
    return found


def pool(data: Prepared) -> tuple[Images, np.ndarray]:
    """What a student is taught on: images, and sorted ids int64 (N,)."""
    return data.distillation_images, data.distillation_train


def slices_of(lesson: Lesson, form: str) -> int:
    return view_count(lesson.distill.augment) or 1 if form == "finite" else lesson.distill.epochs


def stores(lesson: Lesson) -> bool:
    """Whether a teacher's answers are small enough to be kept."""
    return task_of(lesson.task).stores_answers


def tapped_maps(lesson: Lesson) -> list[str]:
    """Paths whose features are compared as maps, which no table holds."""
    return _paths(lesson, embedding=False)


def stored_features(lesson: Lesson) -> list[str]:
    """Paths whose features are compared as embeddings: pooled, they stand in the table."""
    return _paths(lesson, embedding=True)


def _paths(lesson: Lesson, *, embedding: bool) -> list[str]:
    from pipeline.losses import TAPS

    found: set[str] = set()
    for term in lesson.distill.losses:
        if term.weight > 0 and term.loss in TAPS and (TAPS[term.loss] == "embedding") == embedding:
            found |= {term.teacher} if isinstance(term.teacher, str) else set(term.teacher)
    return sorted(found - {""})


def key_of(
    lesson: Lesson, form: Form, inputs: Mapping[str, Path], data: Prepared, *, outputs: Sequence[str] = ()
) -> Key:
    """The key of this lesson's table."""
    from pipeline.data.augment import AUGMENT_VERSION
    from pipeline.models.checkpoint import read_meta
    from pipeline.teacher_table.key import LOGITS, Key, ids_digest, teachers_digest

    images, ids = pool(data)
    paths = [checkpoint(inputs, each) for each in lesson.teachers]
    metas = [read_meta(path) for path in paths]
    fingerprint = data.facts["fingerprint"]
    if "unlabelled" in data.facts:
        fingerprint = sha256_json([fingerprint, data.facts["unlabelled"]["fingerprint"]])
    return Key(
        form=form,
        teacher=teachers_digest(tuple(sha256_file(path) for path in paths), lesson.weights),
        mean=tuple(value for meta in metas for value in meta.mean),
        std=tuple(value for meta in metas for value in meta.std),
        dtype=lesson.distill.precision,
        augment=lesson.distill.augment,
        augment_version=AUGMENT_VERSION,
        data=fingerprint,
        ids=ids_digest(ids),
        image_shape=images.shape,
        outputs=(LOGITS, *outputs),
    )


def _decided(
    recipe: Recipe, lesson: Lesson, context: Context, data: Prepared, networks: list[Network], live: TeacherOutputs
) -> Decision:
    """The decision of an interrupted build stands: costs measured again might turn it."""
    (context.folder / HEADER).unlink(missing_ok=True)  # follows from the recipe: made anew, it cannot be damaged
    if (kept := _kept(context.folder)) is not None:
        write_json(context.folder / FORM, {"form": kept.form})
        return kept
    from pipeline.distillers.teacher import Network
    from pipeline.teacher_table.costs import measure
    from pipeline.training.train import default_device

    images, ids = pool(data)
    settings = lesson.distill
    part = lesson.student
    if part.weights == FROM_TEACHER:
        part = part.model_copy(update={"weights": ""})
    student = Network(module=network(part, data, seed=recipe.seed), mean=data.mean, std=data.std)
    costs = measure(
        live,
        learner_of(lesson, student, data, teacher=networks[0], seed=recipe.seed),
        settings,
        images,
        ids,
        num_classes=data.answer_shape[0],
        device=default_device(),
    )
    decision = decide(
        settings.teacher_outputs,
        view_count=view_count(settings.augment),
        epochs=settings.epochs,
        samples=len(ids),
        width=costs.width,
        teacher_s=costs.teacher_s,
        student_s=costs.student_s,
        free_bytes=shutil.disk_usage(context.folder).free,
        readers=max(lesson.readers, settings.repeats if lesson.name == STUDENT else 1),
    )
    _write(context, decision)
    return decision


def _kept(folder: Path) -> Decision | None:
    """What an interrupted build decided; None where that was not written, or is damaged."""
    try:
        found = json.loads((folder / DECISION).read_bytes())
        if found["form"] in FORMS and json.loads((folder / FORM).read_bytes()) == {"form": found["form"]}:
            return Decision(form=found["form"], reason=str(found["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _write(context: Context, decision: Decision) -> None:
    write_json(context.folder / FORM, {"form": decision.form})
    write_json(context.folder / DECISION, {"form": decision.form, "reason": decision.reason})
    context.say(f"{context.stage.name}: {decision.reason}")


def _accuracy(lesson: Lesson, context: Context) -> float | None:
    """Of the only teacher, on validation images, where it was checked."""
    first, *others = lesson.teachers
    if others or not first.startswith(teacher.NAME):
        return None
    path = context.inputs[teacher.check_name(first)] / teacher.CHECKED
    return json.loads(path.read_text())["accuracy"]
