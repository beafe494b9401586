"""Quantize: int8 with explicit Q/DQ from the fp32 ONNX file and calibration images that the gate never sees."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pipeline.atomic import write_json
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage
from pipeline.stages import export
from pipeline.stages.data import NAME as DATA
from pipeline.stages.data import Prepared, prepared
from pipeline.stages.export import INDEX, compare_files, parity_feeds, said

NAME = "quantize"
NAMES = {"portable": "onnx-int8", "cpu": "onnx-int8-cpu", "gpu": "onnx-int8-gpu", "trt86": "onnx-int8-trt86"}
NNCF = {"nncf": "openvino-int8-nncf", "nncf-mixed": "openvino-int8-nncf-mixed"}
LEAST_DB = 3.0  # below this the graph is broken, not coarse; what coarseness costs is the gate's business


def stage(recipe: Recipe) -> Stage:
    assert recipe.quantize
    stamp = None if NNCF.keys().isdisjoint(recipe.quantize.forms) else nncf_stamp
    return Stage(
        name=NAME,
        version=1,
        stamp=stamp,
        needs=(DATA, export.NAME),
        config={"quantize": recipe.quantize.model_dump(mode="json", exclude={"ladder", "ladder_stop", "qat"})},
        run=functools.partial(run, recipe),
    )


def run(recipe: Recipe, context: Context) -> None:
    """Write the file of each form that the recipe names and artifacts.json, as the export stage does.

    With `quantize.sensitivity`, the entry of each form holds the ranking of its layers too.
    """
    from exporters.artifact import Preprocessing
    from exporters.calibration_samples import refuse_noise
    from exporters.quantize_onnx import quantize_int8
    from exporters.sensitivity import layer_sensitivity

    assert recipe.quantize
    data = prepared(recipe, context.inputs[DATA])
    source = context.inputs[export.NAME] / "onnx-fp32.onnx"
    batch = recipe.export[0].batch
    preprocessing = Preprocessing.of_file(source)
    stream = CalibrationStream(data, preprocessing, batch)
    refuse_noise(stream, where="quantize")
    settings = recipe.quantize.model_dump(
        include={"reduce_range", "method", "percentile", "equalize", "keep_fp32"},
    )
    index: dict[str, Any] = {}
    for form in recipe.quantize.forms:
        if form in ("nncf", "nncf-mixed"):  # the keys of NNCF
            index |= by_nncf(form, source, context, stream, data)
            continue
        name = NAMES[form]
        path = context.folder / f"{name}.onnx"
        artifact = quantize_int8(
            source,
            path,
            form=form,
            batches=stream,
            bias_correction=recipe.quantize.bias_correction,
            say=lambda line, name=name: context.say(f"quantize: {name}, {line}"),
            **settings,
        )
        parity = compare_files(source, path, data, batch, least_db=LEAST_DB)
        index[name] = {"artifact": artifact.to_json(), "parity": parity}
        context.say(f"quantize: {name}, {path.stat().st_size:,} bytes; {said(parity)}")
        if recipe.quantize.sensitivity:
            found = layer_sensitivity(source, form=form, batches=stream, **settings)
            index[name]["sensitivity"] = found.to_json()
            worst = ", ".join(f"{layer.label} {layer.alone_db:.0f} dB" for layer in found.layers[:3])
            context.say(f"quantize: {name}, most sensitive layers, each quantized alone: {worst}")
    write_json(context.folder / INDEX, index)


def nncf_stamp() -> dict[str, str]:
    """What is installed of NNCF: without it, its form is left out, and made when it is there."""
    from exporters.artifact import installed_versions

    return installed_versions("nncf", "openvino")


def by_nncf(form: str, source: Path, context: Context, stream: CalibrationStream, data: Prepared) -> dict[str, Any]:
    """OpenVINO's own int8 file, by NNCF on the same samples; {} with the reason said where NNCF is not installed."""
    from exporters import open_runner
    from exporters.parity import compare
    from exporters.to_openvino import NncfExporter, quantize_nncf

    name = NNCF[form]
    if reason := NncfExporter().unavailable():
        context.say(f"quantize: {name} is left out: {reason}")
        return {}
    path = context.folder / f"{name}.xml"
    artifact = quantize_nncf(
        source, path, form=form, batches=stream, say=lambda line: context.say(f"quantize: {name}, {line}")
    )
    feeds = parity_feeds(data, source, stream.batch)
    with (
        open_runner("openvino", source, threads=1, shapes=feeds[0].shape) as reference,
        open_runner("openvino", path, threads=1, shapes=feeds[0].shape) as candidate,
    ):
        found = compare(reference, candidate, feeds)
    if not found.sqnr_db >= LEAST_DB:
        raise UserError(
            f"quantize: {name} differs from onnx-fp32: {found.sqnr_db:.1f} dB on real samples, at least {LEAST_DB:g} "
            f'dB wanted; leave "{form}" out of quantize.forms'
        )
    parity = found.to_json() | {"against": source.stem}
    context.say(f"quantize: {name}; {said(parity)}")
    return {name: {"artifact": artifact.to_json(), "parity": parity}}


class CalibrationStream:
    """Batches of preprocessed calibration images, float32 (batch, C, H, W), one in memory at a time."""

    def __init__(self, data: Any, preprocessing: Any, batch: int) -> None:
        self.data, self.preprocessing, self.batch = data, preprocessing, batch

    def __iter__(self) -> Any:
        chosen = self.data.calibration
        for start in range(0, len(chosen) // self.batch * self.batch, self.batch):
            yield self.preprocessing.apply(self.data.source.train.load(chosen[start : start + self.batch]))
