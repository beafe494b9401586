"""Export: teacher and student to ONNX fp32, the student to fp16 too; every hop is compared on real samples."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.atomic import write_json
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage
from pipeline.stages import distill, teacher
from pipeline.stages.data import NAME as DATA
from pipeline.stages.data import Prepared, prepared
from pipeline.tasks import task_of

if TYPE_CHECKING:
    from exporters.artifact import Preprocessing
    from pipeline.models.checkpoint import ModelMeta

NAME = "export"
INDEX = "artifacts.json"
INT8_LINEAR = "int8-linear"
PARITY_SAMPLES = 64
RANGE_SAMPLES = 256
FP32_LEAST_DB = 60.0  # rounding of reordered sums stays far above (100 dB and more), a wrong operator far below
FP16_LEAST_DB = 30.0


def stage(recipe: Recipe) -> Stage:
    stamp = bitsandbytes_stamp if INT8_LINEAR in recipe.export[0].precisions else None
    return Stage(
        name=NAME,
        version=2,
        stamp=stamp,
        needs=(DATA, teacher.NAME, distill.NAME),
        config={"export": [part.model_dump(mode="json") for part in recipe.export], "name": recipe.name},
        run=functools.partial(run, recipe),
    )


def run(recipe: Recipe, context: Context) -> None:
    """Write teacher.onnx, onnx-fp32.onnx, onnx-fp16.onnx and artifacts.json: name -> Artifact and parity.

    The layers that fp16 cannot hold, by what passes through them on real samples, stay in fp32: `kept_fp32` of the fp16
    entry says which and why.
    """
    from exporters.artifact import read_metadata
    from exporters.to_fp16 import convert_fp16

    data = prepared(recipe, context.inputs[DATA])
    form = recipe.export[0]
    index: dict[str, Any] = {}
    for name, stage_name, weights in (
        ("teacher", teacher.NAME, teacher.WEIGHTS),
        ("onnx-fp32", distill.NAME, distill.WEIGHTS),
    ):
        path = context.folder / f"{name}.onnx"
        index[name] = export_checkpoint(recipe, data, context.inputs[stage_name] / weights, path)
        context.say(
            f"export: {name} to ONNX opset {form.opset}, {path.stat().st_size:,} bytes; {said(index[name]['parity'])}"
        )
    if "fp16" in form.precisions:
        path = context.folder / "onnx-fp16.onnx"
        source = context.folder / "onnx-fp32.onnx"
        samples = range_samples(data, source, form.batch)
        artifact = convert_fp16(
            source, path, batches=samples, say=lambda line: context.say(f"export: onnx-fp16, {line}")
        )
        parity = compare_files(source, path, data, form.batch, least_db=FP16_LEAST_DB)
        kept = json.loads(read_metadata(path).get("fp16_kept", "{}"))
        index["onnx-fp16"] = {"artifact": artifact.to_json(), "parity": parity} | ({"kept_fp32": kept} if kept else {})
        context.say(f"export: onnx-fp16, {path.stat().st_size:,} bytes; {said(parity)}")
    if INT8_LINEAR in form.precisions:
        index |= int8_linear(context, data, form.batch)
    write_json(context.folder / INDEX, index)


def int8_linear(context: Context, data: Prepared, batch: int) -> dict[str, Any]:
    """The student's checkpoint with bitsandbytes' linear layers; {} with the reason said where it cannot be made."""
    from exporters.artifact import ExportError
    from exporters.parity import compare
    from exporters.run_torch import TorchRunner
    from exporters.to_int8_linear import Int8LinearExporter, export_int8_linear, linear_names
    from pipeline.models import checkpoint

    name = f"torch-{INT8_LINEAR}"
    if reason := Int8LinearExporter().unavailable():
        context.say(f"export: {name} is left out: {reason}")
        return {}
    module, meta = checkpoint.load_checkpoint(context.inputs[distill.NAME] / distill.WEIGHTS)
    made_by = {**meta.made_by, checkpoint.INT8_LINEAR: " ".join(linear_names(module))}
    path = context.folder / f"{name}.safetensors"
    try:
        artifact = export_int8_linear(
            module, path, metadata=checkpoint.header_of(dataclasses.replace(meta, made_by=made_by))
        )
    except ExportError as error:
        context.say(f"export: {name} is left out: {error}")
        return {}
    feeds = parity_feeds(data, context.folder / "onnx-fp32.onnx", batch)
    shape = feeds[0].shape
    with (
        TorchRunner(module, threads=1, input_shape=shape) as reference,
        TorchRunner(
            checkpoint.load_checkpoint(path)[0], threads=1, input_shape=shape, precision=INT8_LINEAR
        ) as candidate,
    ):
        parity = compare(reference, candidate, feeds).to_json() | {"against": "student"}
    context.say(f"export: {name}, {path.stat().st_size:,} bytes; {said(parity)}")
    return {name: {"artifact": artifact.to_json(), "parity": parity}}


def bitsandbytes_stamp() -> dict[str, str]:
    """What is installed of it: without it, its form is left out, and made when it is there."""
    from exporters.artifact import installed_versions

    return installed_versions("bitsandbytes")


def range_samples(data: Prepared, source: Path, batch: int) -> Iterable[np.ndarray]:
    """Calibration images as `source` takes them; training images where the recipe asks for no int8."""
    from exporters.artifact import Preprocessing
    from pipeline.stages.quantize import CalibrationStream

    chosen = data.calibration if len(data.calibration) else data.train[:RANGE_SAMPLES]
    # A set that is smaller than a batch, as in a smoke run, fills one.
    chosen = np.resize(chosen, max(len(chosen), batch))
    return CalibrationStream(dataclasses.replace(data, calibration=chosen), Preprocessing.of_file(source), batch)


def export_checkpoint(recipe: Recipe, data: Prepared, weights: Path, path: Path) -> dict[str, Any]:
    """One checkpoint to one fp32 file, with its parity against torch at the batch sizes that it allows."""
    from exporters import open_runner
    from exporters.parity import compare
    from exporters.run_torch import TorchRunner
    from exporters.to_onnx import export_onnx
    from pipeline.models.checkpoint import load_checkpoint

    module, meta = load_checkpoint(weights)
    form = recipe.export[0]
    metadata = (
        preprocessing_of(meta).to_metadata()
        | task_of(recipe.task).metadata(meta)
        | {
            "model": meta.model,
            "recipe": recipe.name,
            "data": data.facts["fingerprint"],
        }
    )
    artifact = export_onnx(
        module,
        path,
        input_shape=(form.batch, *meta.input_size),
        opset=form.opset,
        dynamic_batch=form.dynamic_batch,
        metadata=metadata,
    )
    parity: dict[str, Any] = {}
    for batch in (form.batch, form.batch + 1) if form.dynamic_batch else (form.batch,):
        shape = (batch, *meta.input_size)
        with (
            TorchRunner(module, threads=1, input_shape=shape) as reference,
            open_runner("onnxruntime", path, threads=1, shapes=shape) as candidate,
        ):
            found = compare(reference, candidate, parity_feeds(data, path, batch))
        parity = found.to_json() | {"against": "torch"}
        if not found.sqnr_db >= FP32_LEAST_DB:
            raise UserError(
                f"export: {path.name} differs from torch at batch {batch}: {found.sqnr_db:.1f} dB on real samples, at "
                f"least {FP32_LEAST_DB:g} dB wanted; try another opset in [[export]], or report the model"
            )
    return {"artifact": artifact.to_json(), "parity": parity}


def preprocessing_of(meta: ModelMeta) -> Preprocessing:
    """A checkpoint's preprocessing in the exporters' form."""
    from exporters.artifact import Preprocessing

    return Preprocessing(
        mean=meta.mean,
        std=meta.std,
        input_size=meta.input_size,
        class_names=meta.class_names,
        color="L" if meta.input_size[0] == 1 else "RGB",
    )


def parity_feeds(data: Prepared, path: Path, batch: int) -> list[np.ndarray]:
    """Real validation samples as the file wants them: float32 (batch, C, H, W)."""
    from exporters.artifact import Preprocessing

    chosen = np.resize(data.validation, max(batch, min(PARITY_SAMPLES, len(data.validation)) // batch * batch))
    inputs = Preprocessing.of_file(path).apply(data.validation_images.load(chosen))
    return [inputs[start : start + batch] for start in range(0, len(inputs), batch)]


def compare_files(reference: Path, candidate: Path, data: Prepared, batch: int, *, least_db: float) -> dict[str, Any]:
    """Parity of two ONNX files on ONNX Runtime; below `least_db` the first diverging layer is named."""
    from exporters import open_runner
    from exporters.parity import compare, first_divergence

    feeds = parity_feeds(data, reference, batch)
    shape = feeds[0].shape
    with (
        open_runner("onnxruntime", reference, threads=1, shapes=shape) as a,
        open_runner("onnxruntime", candidate, threads=1, shapes=shape) as b,
    ):
        found = compare(a, b, feeds)
    if not found.sqnr_db >= least_db:
        layer = first_divergence(reference, candidate, feeds[:1], least_db)
        raise UserError(
            f"{candidate.stem} differs from {reference.stem}: {found.sqnr_db:.1f} dB on real samples, at least "
            f"{least_db:g} dB wanted; it diverges first at {layer or 'the output'}"
        )
    return found.to_json() | {"against": reference.stem}


def said(parity: dict[str, Any]) -> str:
    noise = "equal" if parity["sqnr_db"] is None else f"{parity['sqnr_db']:.0f} dB"
    flips = "" if parity["top1_flips"] is None else f", {parity['top1_flips']} flips"
    return (
        f"against {parity['against']} on {parity['n']} samples: max difference {parity['max_abs']:.2g}, {noise}{flips}"
    )
