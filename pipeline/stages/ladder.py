"""Ladder: where plain int8 breaks the accuracy rules on the validation split, climb, cheapest rung first.

Post-training rungs only; the last one, quantization-aware training, is a stage of its own (`pipeline.stages.qat`). Each
rung builds on the best settings so far. Rungs that are done survive a kill, in the stage's resume folder.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.atomic import write_json
from pipeline.errors import RecipeError, UserError
from pipeline.ladder import accuracy_rules, better, climb_sentence, reaches, record_line
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage
from pipeline.stages import export, quantize
from pipeline.stages.data import NAME as DATA
from pipeline.stages.data import Prepared, prepared
from pipeline.stages.evaluate import before_ladder, runtime_stamp
from pipeline.stages.float_layers import climb_float_layers
from pipeline.stages.quantize import NAMES, NNCF, CalibrationStream
from pipeline.stages.rungs import NVIDIA_FORMS, Bench, kept, open_bench
from pipeline.tasks import task_of

NAME = "ladder"
RECORD = "ladder.json"  # with seconds and latencies, which differ from build to build
NEEDED = "needed.json"  # form -> settings with which quantization-aware training begins
MORE = 4  # times the samples of the recipe
SETTINGS = ("reduce_range", "method", "percentile", "equalize", "keep_fp32", "bias_correction")


def stage(recipe: Recipe) -> Stage:
    """Raises `RecipeError` where the recipe has no rule to climb for."""
    assert recipe.quantize
    rules = accuracy_rules(recipe.gate)
    if not rules:
        raise RecipeError(
            "quantize.ladder: it climbs until the accuracy rules hold, and [[gate]] has none; add one, such as "
            '{ metric = "accuracy_drop", against = "student", max = "1.0pt" }'
        )
    quantized = recipe.quantize.model_dump(mode="json", exclude={"qat", "sensitivity"})
    return Stage(
        name=NAME,
        version=1 if NVIDIA_FORMS.isdisjoint(recipe.quantize.forms) else 2,  # these were not climbed in the first
        needs=before_ladder(recipe),
        config={
            "quantize": quantized | {"ladder": recipe.quantize.rungs},
            "gate": [rule.model_dump(mode="json") for rule in recipe.gate if rule in rules],
            "profile": recipe.profile.model_dump(mode="json"),
            "seed": recipe.seed,
        },
        stamp=functools.partial(runtime_stamp, recipe),
        volatile=(RECORD,),
        run=functools.partial(run, recipe),
    )


def run(recipe: Recipe, context: Context) -> None:
    """Write ladder.json (every rung that was tried), needed.json, artifacts.json and the file of each rung that holds,
    or of the best one where none does and no training follows."""
    assert recipe.quantize
    data = prepared(recipe, context.inputs[DATA])
    found: dict[str, Any] = {"forms": {}, "rungs": [], "sensitivity": {}}
    needed: dict[str, Any] = {}
    index: dict[str, Any] = {}
    for form in recipe.quantize.forms:
        bench = None if form in NNCF else open_bench(recipe, data, context.inputs, form=form, stage=NAME)
        if bench is None:
            why = "its quantizer, NNCF, takes no rung" if form in NNCF else "profile.runtimes has none that runs files"
            found["forms"][form] = {"sentence": f"{form}: {why}, so it stays as it is"}
            continue
        climb = Climb(recipe=recipe, data=data, context=context, bench=bench)
        climb.run()
        found["forms"][form] = climb.summary
        found["rungs"] += climb.records
        found["sensitivity"] |= climb.sensitivity
        index |= climb.shipped()
        if climb.trains:
            needed[form] = climb.best["settings"] | {"samples": climb.best["samples"]}
    write_json(context.folder / export.INDEX, index)
    write_json(context.folder / NEEDED, {"forms": needed})
    write_json(context.folder / RECORD, found)


@dataclasses.dataclass(kw_only=True)
class Climb:
    """The climb of one form. `records` are all rungs in order, plain int8 first; those that could not be made have
    `left_out` with the reason, and no accuracy."""

    recipe: Recipe
    data: Prepared
    context: Context
    bench: Bench
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    sensitivity: dict[str, Any] = dataclasses.field(default_factory=dict)
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    target: Any = "holds"
    fp32: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self) -> None:
        quantized, name = self.recipe.quantize, NAMES[self.bench.form]
        assert quantized
        fp32 = self.bench.baselines[f"onnx-fp32@{self.bench.runtime}"]
        self.fp32 = self.bench.standing_of(fp32)
        self.target = self.fp32["state"]
        entry = json.loads((self.context.inputs[quantize.NAME] / export.INDEX).read_text())[name]
        if "sensitivity" in entry:
            self.sensitivity[self.bench.form] = entry["sensitivity"]
        plain = self.context.inputs[quantize.NAME] / f"{name}.onnx"
        settings = quantized.model_dump(mode="json", include=set(SETTINGS))
        self.best = self.add(
            self.work("plain", "plain", settings, quantized.samples, lambda path: self.measured(plain), file=plain)
        )
        if not self.climbs or self.done:
            return
        for rung in quantized.rungs:
            for record in self.options(rung):
                self.add(record)
                if not record.get("left_out") and better(record, self.best):
                    self.best = record
                if self.done:
                    return

    @property
    def climbs(self) -> bool:
        """Whether a rung could mend anything: fp32 keeps the rules, and the runtime takes the form at all."""
        return self.target != "misses" and not self.records[0].get("left_out")

    @property
    def done(self) -> bool:
        """Whether a rung stands as well as fp32 does, and nobody wants to see the rest."""
        assert self.recipe.quantize
        return self.recipe.quantize.ladder_stop and any(self.reached(record) for record in self.records)

    def reached(self, record: Mapping[str, Any]) -> bool:
        return not record.get("left_out") and reaches(record["state"], self.target)

    @property
    def trains(self) -> bool:
        assert self.recipe.quantize
        return "qat" in self.recipe.quantize.rungs and self.climbs and not self.done

    @property
    def summary(self) -> dict[str, Any]:
        form, runtime = self.bench.form, self.bench.runtime
        told = [record for record in self.records if not record.get("left_out")]
        if told:
            sentence = climb_sentence(form, told, self.target, self.fp32)
        else:
            sentence = f"{form}: {runtime} does not run it ({self.records[0]['left_out']}), so it stays as it is"
        return {"runtime": runtime, "target": self.target, "fp32": self.fp32, "sentence": sentence}

    def options(self, rung: str) -> Iterator[dict[str, Any]]:
        """The records of one rung: several where it has several settings, none where it is already in force."""
        settings, samples = dict(self.best["settings"]), self.best["samples"]
        if rung == "calibration":
            for method in ("minmax", "percentile", "entropy"):
                if method != self.records[0]["settings"]["method"]:
                    yield self.attempt(rung, method, self.records[0]["settings"] | {"method": method}, samples)
        elif rung == "samples":
            yield self.attempt(rung, rung, settings, MORE * samples)
        elif rung in ("equalize", "bias-correction"):
            key = rung.replace("-", "_")
            if not settings[key]:
                record = self.attempt(rung, rung, settings | {key: True}, samples)
                if "ReLU6" not in record.get("left_out", ""):
                    yield record
                else:  # nets with ReLU6 everywhere; what the ReLUs in its place cost is judged with all else
                    yield self.attempt(rung, f"{rung}-relu6", settings | {key: "relu6"}, samples)
        elif rung == "float-layers":
            stream = self.stream(samples)
            work = functools.partial(climb_float_layers, self.bench, settings=settings, target=self.target)
            made = functools.partial(work, source=self.source, stream=stream, folder=self.context.resume_folder)
            record = self.work(rung, rung, settings, samples, made)
            if "sensitivity" in record:
                self.sensitivity.setdefault(self.bench.form, record.pop("sensitivity"))
            yield record

    def attempt(self, rung: str, slug: str, settings: dict[str, Any], samples: int) -> dict[str, Any]:
        from exporters.quantize_onnx import quantize_int8

        def make(path: Path) -> dict[str, Any]:
            quantize_int8(self.source, path, form=self.bench.form, batches=self.stream(samples), **settings)  # type: ignore[arg-type]
            return self.measured(path)

        return self.work(rung, slug, settings, samples, make)

    def work(
        self, rung: str, slug: str, settings: dict[str, Any], samples: int, make: Any, *, file: Path | None = None
    ) -> dict[str, Any]:
        """The record of one rung, of this run or of the one that was interrupted."""
        from exporters.artifact import ExportError

        form = self.bench.form

        def done(path: Path) -> dict[str, Any]:
            begin = time.perf_counter()
            common = {"form": form, "rung": rung, "label": slug, "settings": settings, "samples": samples}
            common |= {"runtime": self.bench.runtime, "artifact": NAMES[form] + ("" if file else f"-{slug}")}
            try:
                record = common | make(path)
                record["size_bytes"] = (file or path).stat().st_size
            except (ExportError, UserError) as error:
                path.unlink(missing_ok=True)
                record = common | {"left_out": str(error).replace(f"{self.source}: ", "")}
            return record | {"seconds": time.perf_counter() - begin}

        say = functools.partial(_say, self.context)
        return kept(self.context.resume_folder, f"{form}-{slug}", done, say)

    def measured(self, path: Path) -> dict[str, Any]:
        return self.bench.judge(path) | self.bench.time({"rung": path})["rung"]

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        self.records.append(record)
        if record.get("left_out"):
            _say(self.context, f"{record['form']}, {record['label']}: left out: {record['left_out']}")
        else:
            _say(self.context, record_line(record, task_of(self.recipe.task).show))
        return record

    @property
    def source(self) -> Path:
        return self.context.inputs[export.NAME] / "onnx-fp32.onnx"

    def stream(self, samples: int) -> CalibrationStream:
        return calibration(self.recipe, self.data, self.source, samples)

    def shipped(self) -> dict[str, Any]:
        """Copy what is to be judged into the stage's folder; its entries for artifacts.json."""
        chosen = [record for record in self.records[1:] if self.reached(record)]
        if not chosen and not self.trains and self.best is not self.records[0]:
            chosen = [self.best]
        return {record["artifact"]: self.keep(record) for record in chosen}

    def keep(self, record: Mapping[str, Any]) -> dict[str, Any]:
        made = self.context.resume_folder / f"{record['form']}-{record['label']}.onnx"
        path = self.context.folder / f"{record['artifact']}.onnx"
        return keep_file(self.recipe, self.data, self.source, made, path, rung=record["rung"])


def keep_file(recipe: Recipe, data: Prepared, source: Path, made: Path, path: Path, *, rung: str) -> dict[str, Any]:
    """Copy a rung's file to `path`; its entry for artifacts.json, with the parity against fp32."""
    from exporters.artifact import read_metadata
    from exporters.onnx_file import load_model, onnx_artifact

    shutil.copyfile(made, path)
    parity = export.compare_files(source, path, data, recipe.export[0].batch, least_db=quantize.LEAST_DB)
    artifact = onnx_artifact(load_model(path), path, precision="int8", made_by=read_metadata(path).get("versions", {}))
    return {"artifact": artifact.to_json(), "parity": parity, "rung": rung}


def calibration(recipe: Recipe, data: Prepared, source: Path, samples: int) -> CalibrationStream:
    """A stream of that many calibration images: those of the data stage, or more of the same kind, none of which stands
    in the gate set. Raises UserError where there are too few."""
    from exporters.artifact import Preprocessing
    from pipeline.data.split import Splits, calibration_indices, origin_hashes

    if samples != len(data.calibration):
        splits = Splits(train=data.train, validation=data.validation, test=data.test)
        gate = origin_hashes(data.source.test, data.test)
        chosen = calibration_indices(
            splits, data.source.train.labels, samples, seed=recipe.seed, images=data.source.train, exclude=gate
        )
        data = dataclasses.replace(data, calibration=chosen)
    return CalibrationStream(data, Preprocessing.of_file(source), recipe.export[0].batch)


def _say(context: Context, line: str) -> None:
    context.say(f"{context.stage.name}: {line}")


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECORD).read_text())
