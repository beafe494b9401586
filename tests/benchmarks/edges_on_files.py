"""Judge the files of an edge detection run on BSDS500's test images, interleaved image by image; no torch is timed.

    python tests/benchmarks/edges_on_files.py artifacts/paper003-edges --root bsds500.zip --json OUT.json

For runs whose whole `evaluate` stage (every network on torch too, validation as well) is too much for a machine:
teacher, control, student and int8 files on one runtime, the same images for all; Dice, ODS, OIS, and differences with
one-sided 99 % bounds as the gate forms them. Stops after --seconds and says how many images it saw.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from exporters import open_runner
from exporters.artifact import Preprocessing
from pipeline.data import open_source
from pipeline.environment import cpu_model
from pipeline.evaluate import Subject
from pipeline.gates.intervals_mean import mean_bounds, moments_of
from pipeline.recipe import Data
from pipeline.tasks.edges import Edges

FILES = (("export", "teacher"), ("export", "onnx-fp32"), ("quantize", "onnx-int8"), ("quantize", "onnx-int8-cpu"))
CONFIDENCE = 0.99
PAIRS = (("control", "teacher"), ("onnx-fp32", "teacher"), ("onnx-fp32", "control"), ("onnx-int8", "onnx-fp32"),
         ("onnx-int8-cpu", "onnx-fp32"), ("onnx-int8", "teacher"), ("onnx-int8-cpu", "teacher"))  # fmt: skip


def files_of(run: Path, folder: Path) -> dict[str, Path]:
    """The run's ONNX files by name, and its control exported into `folder` as the student was."""
    from exporters.to_onnx import export_onnx
    from pipeline.models.checkpoint import load_checkpoint

    found = {name: next(run.glob(f"{stage}-*/{name}.onnx")) for stage, name in FILES}
    module, meta = load_checkpoint(next(run.glob("control-*/student.safetensors")))
    found["control"] = export_onnx(
        module,
        folder / "control.onnx",
        input_shape=(1, *meta.input_size),
        opset=18,
        dynamic_batch=False,
        metadata=Preprocessing.of_file(found["onnx-fp32"]).to_metadata(),
    ).path
    return found


def training_of(run: Path) -> dict[str, Any]:
    """What each network's training recorded, epoch by epoch; `val_dice` is that of the middle patch of each image."""
    found = {}
    for role, stage in (("teacher", "teacher"), ("student", "distill"), ("control", "control")):
        told = json.loads(next(run.glob(f"{stage}-????????????/training.json")).read_text())
        curve = [
            {"epoch": row["epoch"], "val_dice": row["val_accuracy"], "seconds": row["seconds"]} | row["terms"]
            for row in told["curve"]
        ]
        found[role] = {key: told[key] for key in ("epochs", "total_s", "teacher_share")} | {"curve": curve}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--root", required=True, help="BSDS500's folder or .zip")
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: dict[str, list[dict[str, np.ndarray]]] = {}
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = files_of(given.run, Path(folder))
        subjects = {}
        for name, path in files.items():
            runner = stack.enter_context(open_runner(given.runtime, path, threads=1, device="cpu"))
            subjects[name] = Subject(runner=runner, preprocess=Preprocessing.of_file(path).apply)
        sizes = {name: path.stat().st_size for name, path in files.items()}
        side = Preprocessing.of_file(files["teacher"]).input_size[-1]
        source = open_source(Data.model_validate({"name": "bsds500", "root": given.root, "patch": side}))
        began = time.monotonic()
        for index in range(min(given.images, len(source.test))):
            ((image, target),) = source.test.pairs(np.array([index]))
            for name, subject in subjects.items():
                start = time.perf_counter()
                answers = Edges.answer(subject, [image])
                seconds.setdefault(name, []).append(time.perf_counter() - start)
                rows.setdefault(name, []).append(Edges.outcomes(answers, [target]))
            if time.monotonic() - began > given.seconds:
                break
    outcomes = {
        name: {key: np.concatenate([row[key] for row in part]) for key in part[0]} for name, part in rows.items()
    }
    found: dict[str, Any] = {
        "command": " ".join(["python", "tests/benchmarks/edges_on_files.py", given.run.name, *sys.argv[2:]]),
        "machine": {"cpu": cpu_model(), "threads": 1, "python": platform.python_version()},
        "versions": {name: version(name) for name in ("numpy", "openvino", "onnxruntime", "torch")},
        "training": training_of(given.run),
        "runtime": given.runtime,
        "tile": side,
        "images": len(next(iter(rows.values()))),
        "annotators": "each" if target.shape[2] > 2 else "their consensus",
        "subjects": {
            name: {key: value for key, value in Edges.summary(part).items() if key != "moments"}
            | {"size_bytes": sizes[name], "median_s_an_image": float(np.median(seconds[name]))}
            for name, part in outcomes.items()
        },
        "comparisons": [
            {"subject": a, "against": b, **row, "bounds_99": bounds(row)}
            for a, b in PAIRS
            for row in Edges.comparisons(outcomes[a], outcomes[b])
        ],
    }
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if given.json:
        given.json.write_text(text)


def bounds(row: dict[str, Any]) -> list[float]:
    """Lower and upper one-sided 99 % bound of the mean difference, in points."""
    both = mean_bounds(moments_of(row), CONFIDENCE)
    return [both.lower, both.upper]


if __name__ == "__main__":
    main()
