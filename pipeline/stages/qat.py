"""Qat: the ladder's last rung. The student is trained on with fake quantization in it, by the lesson it was taught by.

Losses, teacher and teacher table are those of [distill]; terms that ended before its last epoch stay ended, and none
warms up again. Training begins with the exported student, BatchNorm folded, on the grids of the best rung so far, and
has no dropout. A form that a cheaper rung brought to the rules is not trained.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import write_json
from pipeline.errors import UserError
from pipeline.ladder import climb_sentence, record_line
from pipeline.recipe import Recipe
from pipeline.recipe_training import Augment, Distill
from pipeline.stage import Context, Stage
from pipeline.stages import distill, export, ladder, table, teacher
from pipeline.stages.data import NAME as DATA
from pipeline.stages.data import Prepared, prepared
from pipeline.stages.evaluate import before_ladder, runtime_stamp
from pipeline.stages.lesson import STUDENT, Lesson, learner_of, lessons, tutors
from pipeline.stages.quantize import NAMES
from pipeline.stages.rungs import Bench, kept, open_bench, whole
from pipeline.tasks import task_of

if TYPE_CHECKING:
    from exporters.qat import Trainable

NAME = "qat"
RECORD = "qat.json"  # with seconds and latencies, which differ from build to build
SHARE_OF_EPOCHS = 4
SHARE_OF_LR = 100
LEAST_AGREED_DB = 20.0  # of the outputs, end to end: a whole number that fell otherwise moves all behind it
LEAST_EQUAL = 0.999  # of the whole numbers, file against module; the rest fell on the edge between two
_PLAIN = {"head_lr": 0.0, "freeze": (), "ema": 0.0, "precision": "fp32", "compile": False, "early_stopping": 0}


def stage(recipe: Recipe) -> Stage:
    assert recipe.quantize
    lesson = lessons(recipe)[-1]
    asked = [name for each in lesson.teachers for name in teacher.with_check(each)] if lesson.taught else []
    if lesson.taught and lesson.distill.teacher_outputs != "live":
        asked.append(table.stage_name(lesson))
    before = before_ladder(recipe)
    return Stage(
        name=NAME,
        version=1,
        needs=(*before, *(name for name in asked if name not in before), ladder.NAME),
        config={
            "quantize.qat": recipe.quantize.qat.model_dump(mode="json"),
            "distill": lesson.distill.model_dump(mode="json", exclude=distill.NOT_LEARNT_FROM),
            "seed": recipe.seed,
        },
        stamp=functools.partial(runtime_stamp, recipe),
        volatile=(RECORD,),
        run=functools.partial(run, recipe),
        together=True,
    )


def run(recipe: Recipe, context: Context) -> None:
    """Write qat.json (a record for each form that was trained), artifacts.json and the trained files."""
    from pipeline.training.distributed import current

    needed = json.loads((context.inputs[ladder.NAME] / ladder.NEEDED).read_text())["forms"]
    found: dict[str, Any] = {"forms": {}, "rungs": []}
    index: dict[str, Any] = {}
    data = prepared(recipe, context.inputs[DATA]) if needed else None
    climbed = ladder.read(context.inputs[ladder.NAME])
    for form, settings in needed.items():
        assert data is not None
        bench = open_bench(recipe, data, context.inputs, form=form, stage=NAME) if context.leads else None
        work = functools.partial(trained, recipe, data, context, form, settings, bench)
        done = current().share(whole(context.resume_folder, f"{form}-{NAME}") is not None if context.leads else None)
        if not context.leads:
            if not done:
                work(context.resume_folder / "nothing.onnx")
            continue
        record = kept(context.resume_folder, f"{form}-{NAME}", work, lambda line: context.say(f"qat: {line}"))
        found["rungs"].append(record)
        if not record.get("left_out"):
            index[record["artifact"]] = kept_artifact(recipe, data, context, record)
            context.say(f"qat: {record_line(record, task_of(recipe.task).show)}")
        else:
            context.say(f"qat: {form}: left out: {record['left_out']}")
        facts = climbed["forms"][form]
        told = [row for row in (*climbed["rungs"], record) if row["form"] == form and not row.get("left_out")]
        found["forms"][form] = facts | {"sentence": climb_sentence(form, told, facts["target"], facts["fp32"])}
    if not context.leads:
        return
    if not needed:
        context.say("qat: no form needs it")
    write_json(context.folder / export.INDEX, index)
    write_json(context.folder / RECORD, found)


def trained(
    recipe: Recipe,
    data: Prepared,
    context: Context,
    form: str,
    settings: Mapping[str, Any],
    bench: Bench | None,
    path: Path,
) -> dict[str, Any]:
    """Train one form and write its file at `path`; the record of its rung. Only the leading process has a bench."""
    from exporters.artifact import ExportError
    from exporters.qat import agreement, export_trained, trainable
    from pipeline.models.checkpoint import load_checkpoint
    from pipeline.training.train import train

    begin = time.perf_counter()
    lesson = retaught(lessons(recipe)[-1], recipe)
    source = context.inputs[export.NAME] / "onnx-fp32.onnx"
    record: dict[str, Any] = {
        "form": form,
        "rung": NAME,
        "label": NAME,
        "settings": dict(settings) | {"epochs": lesson.distill.epochs, "lr": lesson.distill.lr},
        "samples": settings["samples"],
        "runtime": bench.runtime if bench else "",
        "artifact": f"{NAMES[form]}-{NAME}",
    }
    stream = ladder.calibration(recipe, data, source, settings["samples"])
    begins = {key: value for key, value in settings.items() if key not in ("samples", "bias_correction")}
    try:
        if lesson.distill.mode != "offline":
            raise ExportError(
                f"distill.mode = {lesson.distill.mode!r} trains networks together, which no int8 form does"
            )
        student, meta = load_checkpoint(context.inputs[distill.NAME] / distill.WEIGHTS)
        taps = table_paths(lesson)
        ready = trainable(source, stream, form=form, network=student, taps=taps, **begins)  # type: ignore[arg-type]
        check_batches(ready, data, recipe)
        result = train_form(recipe, data, context, lesson, ready, (meta.mean, meta.std), form, train)
    except ExportError as error:
        return record | {"left_out": str(error).replace(f"{source}: ", ""), "seconds": time.perf_counter() - begin}
    if bench is None:
        return record
    facts = {"qat_epochs": str(lesson.distill.epochs), "qat_lr": f"{lesson.distill.lr:g}"}
    export_trained(ready, path, batches=stream, metadata=facts)
    feeds = export.parity_feeds(data, source, recipe.export[0].batch)
    agreed = agreement(ready, path, feeds)
    noise = math.inf if agreed.sqnr_db is None else agreed.sqnr_db
    if agreed.equal < LEAST_EQUAL or noise < LEAST_AGREED_DB:
        raise UserError(
            f"qat: {form}: the exported file is not the module that was trained: {1 - agreed.equal:.2%} of its whole "
            f"numbers differ, and its outputs by {noise:.1f} dB; report the model"
        )
    record |= bench.judge(path) | bench.time({NAME: path})[NAME]
    return record | {
        "size_bytes": path.stat().st_size,
        "agreement": agreed.to_json(),
        "training": teacher.training_record(result),
        "seconds": time.perf_counter() - begin,
    }


def train_form(
    recipe: Recipe,
    data: Prepared,
    context: Context,
    lesson: Lesson,
    ready: Trainable,
    scaling: tuple[tuple[float, ...], tuple[float, ...]],
    form: str,
    train: Any,
) -> Any:
    from pipeline.distillers.teacher import Network

    networks = tutors(lesson, context.inputs) if lesson.taught else []
    network = Network(module=ready.module, mean=scaling[0], std=scaling[1])
    learner = learner_of(lesson, network, data, teacher=networks[0] if networks else None, seed=recipe.seed)
    answers = None
    if lesson.taught:  # asked with the lesson as it was: the table is that one's
        answers = distill.answers(lessons(recipe)[-1], networks, learner, data, context)
    folder = context.resume_folder / form
    folder.mkdir(parents=True, exist_ok=True)
    return train(
        learner,
        lesson.distill,
        distill.train_data(recipe, data, taught=True),
        folder=folder,
        key=f"{context.folder.name}-{form}",
        seed=recipe.seed,
        say=context.say,
        label=f"qat, {form}",
        teacher=answers,
    )


def retaught(lesson: Lesson, recipe: Recipe) -> Lesson:
    """The student's lesson as it goes on in quantization-aware training."""
    assert recipe.quantize and lesson.name == STUDENT
    settings, qat = lesson.distill, recipe.quantize.qat
    terms = tuple(
        term.model_copy(update={"warmup_epochs": 0.0, "until_epoch": 0.0})
        for term in settings.losses
        if not term.until_epoch or term.until_epoch >= settings.epochs
    )
    changes: dict[str, Any] = _PLAIN | {
        "epochs": qat.epochs or math.ceil(settings.epochs / SHARE_OF_EPOCHS),
        "lr": qat.lr or settings.lr / SHARE_OF_LR,
        "losses": terms,
        "schedule": "cosine",
        "warmup_epochs": 0.0,
        "min_lr": 0.0,
        "select": "best",
        "end_on_plateau": 0,
    }
    assert isinstance(settings.augment, Augment) and isinstance(settings, Distill)
    return dataclasses.replace(lesson, distill=settings.model_copy(update=changes))


def table_paths(lesson: Lesson) -> list[str]:
    """Module paths of the student whose features a loss looks at."""
    from pipeline.distillers.objective import tapped

    return list(tapped(lesson.distill.losses, "student")) if lesson.taught else []


def check_batches(ready: Trainable, data: Prepared, recipe: Recipe) -> None:
    """The module must give in a batch what it gives for each image alone: a graph may have its batch written in."""
    import numpy as np
    import torch

    from exporters.artifact import ExportError

    feeds = export.parity_feeds(data, ready.source, recipe.export[0].batch)
    images = torch.from_numpy(np.concatenate(feeds)[: max(2, ready.module.batch + 1)])
    with torch.no_grad():
        try:
            together = ready.module(images)
            alone = torch.cat([ready.module(images[place : place + 1]) for place in range(len(images))])
            same = together.shape == alone.shape and torch.allclose(together, alone, rtol=0.05, atol=0.05)
        except (RuntimeError, IndexError):
            same = False
    if not same:
        raise ExportError("its graph has the batch written into it, so it cannot be trained in batches")


def kept_artifact(recipe: Recipe, data: Prepared, context: Context, record: Mapping[str, Any]) -> dict[str, Any]:
    return ladder.keep_file(
        recipe,
        data,
        context.inputs[export.NAME] / "onnx-fp32.onnx",
        context.resume_folder / f"{record['form']}-{NAME}.onnx",
        context.folder / f"{record['artifact']}.onnx",
        rung=NAME,
    )


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECORD).read_text())
