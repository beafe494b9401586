"""What rivals.py and runtime_table.py measure, made once and kept in a folder, so that a quiet machine only measures.

    python tests/benchmarks/lineup.py --cifar artifacts/cifar10 --work WORK [--rivals] [--olive OLIVE/bin/python]

Three networks: the student of a finished CIFAR-10 run (its own files, calibration images and test images), and
torchvision's resnet18 and mobilenet_v2 at 224 pixels with random weights and BatchNorm statistics of noise, which serve
for speed alone. Every file leaves the batch open, so that one file is measured at batch 1 and 32. WORK/lineup.json
names every subject with its sha256, size, peak memory in a fresh process, and, where there is data, its accuracy; what
could not be made is in it too, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("CI", "true")  # keeps NNCF and OpenVINO from sending events

TORCHVISION = ("resnet18", "mobilenet_v2")
SIDE, CALIBRATION, SEED = 224, 32, 0
FORMS = {"portable": "onnx-int8", "cpu": "onnx-int8-cpu"}
EVALUATION_BATCH = 50


def random_network(name: str) -> Any:
    """A network of torchvision with random weights and the BatchNorm statistics of noise; torch's module."""
    import torch
    from torchvision.models import get_model

    torch.manual_seed(SEED)
    module = get_model(name, weights=None).train()
    with torch.no_grad():
        for _ in range(5):
            module(torch.randn(4, 3, SIDE, SIDE))
    return module.eval()


def build_random(name: str) -> Any:
    """For the fresh process that measures memory."""
    return random_network(name)


def build_checkpoint(checkpoint: str) -> Any:
    from pipeline.models.checkpoint import load_checkpoint

    return load_checkpoint(Path(checkpoint))[0]


def noise() -> np.ndarray:
    """float32 (CALIBRATION, 3, 224, 224)."""
    return np.random.default_rng(SEED).standard_normal((CALIBRATION, 3, SIDE, SIDE), dtype=np.float32)


def runs_here() -> tuple[str, ...]:
    from exporters import MODULE_RUNTIMES, RUNTIMES, unavailable

    return tuple(name for name in RUNTIMES if name not in MODULE_RUNTIMES and unavailable(name) is None)


def network_of_torchvision(name: str, folder: Path) -> dict[str, Any]:
    """Every form that a run makes, by the functions that a run calls."""
    from exporters.quantize_onnx import quantize_int8
    from exporters.to_fp16 import convert_fp16
    from exporters.to_onnx import OnnxExporter
    from exporters.to_openvino import NncfExporter, quantize_nncf
    from pipeline.stages.quantize import NNCF

    folder.mkdir(parents=True, exist_ok=True)
    source, images = folder / "onnx-fp32.onnx", noise()
    np.save(folder / "calibration.npy", images)
    shape = (2, 3, SIDE, SIDE)  # an example of an open batch must not be 1
    OnnxExporter().export(random_network(name), source, input_shape=shape, dynamic_batch=True)
    stream = [images[i : i + 1] for i in range(len(images))]
    convert_fp16(source, folder / "onnx-fp16.onnx", batches=stream)
    for form, stem in FORMS.items():
        quantize_int8(source, folder / f"{stem}.onnx", form=form, batches=stream)
    builder = {"builder": "lineup:build_random", "args": {"name": name}}
    names = [f"{stem}.onnx" for stem in ("onnx-fp32", "onnx-fp16", *FORMS.values())]
    for form, stem in NNCF.items() if NncfExporter().unavailable() is None else ():
        names.append(f"{stem}.xml")
        quantize_nncf(source, folder / names[-1], form=form, batches=stream)
    made = torch_subjects(builder)
    for file in names:
        made += files(folder / file)
    return {"input": [3, SIDE, SIDE], "weights": "random; BatchNorm statistics of noise", "subjects": made}


def network_of_run(run: Path, folder: Path) -> dict[str, Any]:
    """The student of a finished CIFAR-10 run with `export.dynamic_batch`: its files, its images, its verdict."""
    from pipeline.reports.report import load

    folder.mkdir(parents=True, exist_ok=True)
    report = load(run)
    data, preprocess = images_of(run, report)
    np.save(folder / "calibration.npy", preprocess(data.source.train.load(data.calibration)))
    chosen = [row for row in report["subjects"] if row["role"] == "artifact"]
    source = next(row for row in chosen if row["name"].startswith("onnx-fp32@"))
    if "batch" not in str(specs(run / source["path"])[0].shape[0]):
        raise SystemExit(f"{run}: its files have one batch; run it with export.dynamic_batch = true")
    (folder / "onnx-fp32.onnx").write_bytes((run / source["path"]).read_bytes())
    student = next(row for row in report["subjects"] if row["name"] == "student")
    made = torch_subjects({"builder": "lineup:build_checkpoint", "args": {"checkpoint": str(run / student["path"])}})
    passed_over = report["selection"]["reason"]
    for path in dict.fromkeys(row["path"] for row in chosen):
        for entry in files(run / path):
            entry["passed_over"] = f"{entry['name']} passed over" in passed_over
            made.append(entry)
    training = {key: student["training"][key] for key in ("epochs", "total_s")} if student.get("training") else None
    return {
        "input": list(data.input_size),
        "weights": f"student of {report['command']}",
        "training": training,
        "test_images": len(data.test),
        "verdict": report["verdict"],
        "selection": report["selection"],
        "subjects": made,
    }


def images_of(run: Path, report: dict[str, Any]) -> tuple[Any, Any]:
    """(the run's prepared data, what turns its uint8 images into its networks' input)."""
    from exporters.artifact import Preprocessing
    from pipeline.bundle.settings import recipe_of
    from pipeline.stages.data import prepared

    recipe = recipe_of(report, str(run))
    source = next(row for row in report["subjects"] if row["name"].startswith("onnx-fp32@"))
    folders = sorted(run.glob("data-*"), key=lambda path: path.stat().st_mtime)
    return prepared(recipe, folders[-1]), Preprocessing.of_file(run / source["path"]).apply


def specs(path: Path) -> Any:
    from exporters.artifact import input_specs

    return input_specs(path)


def torch_subjects(builder: dict[str, Any]) -> list[dict[str, Any]]:
    """Eager in true fp32 and in bf16, and compiled in fp32 (minutes at each shape) where a compiler is installed."""
    from exporters import unavailable

    return [
        {"name": f"{precision}@{runtime}", "precision": precision, "maker": "edgestill", "runtime": runtime, **builder}
        for runtime, precision in (("torch", "fp32"), ("torch", "bf16"), ("torch-compile", "fp32"))
        if unavailable(runtime) is None
    ]


def files(path: Path) -> list[dict[str, Any]]:
    """A subject for each runtime that `auto` gives a file to."""
    from exporters.artifact import file_sha256, read_metadata
    from pipeline.stages.subjects import runs_well
    from profiles.size import size_bytes

    runtimes = runs_here()
    facts = {"path": str(path), "sha256": file_sha256(path), "size_bytes": size_bytes(path)}
    facts["precision"] = read_metadata(path).get("precision")
    return [
        {"name": f"{path.stem}@{runtime}", "maker": "edgestill", "runtime": runtime, **facts}
        for runtime in runtimes
        if runs_well(path.stem, runtime, runtimes)
    ]


def open_subject(subject: dict[str, Any], shape: tuple[int, ...], threads: int) -> Any:
    """A runner at `shape`, not yet entered."""
    from rival_tools import OpenVinoAsItComes

    from exporters import open_runner

    if "builder" in subject:
        from exporters import RUNTIMES
        from pipeline.registry import load

        module = globals()[subject["builder"].partition(":")[2]](**subject["args"])
        how = {"threads": threads, "input_shape": shape, "precision": subject["precision"], "channels_last": True}
        return load(RUNTIMES[subject["runtime"]])(module, **how)
    if subject.get("as_it_comes"):
        return OpenVinoAsItComes(subject["path"], threads=threads, shapes=shape)
    return open_runner(subject["runtime"], subject["path"], threads=threads, shapes=shape)


def memory_of(subject: dict[str, Any], shape: tuple[int, ...]) -> tuple[int | None, str | None]:
    """Peak resident bytes of a fresh process that loads the subject and infers, or why it is not known."""
    from profiles.errors import ProfileError
    from profiles.isolate import call

    request = {key: subject[key] for key in ("runtime", "path", "builder", "args", "precision") if subject.get(key)}
    request["channels_last"] = True
    try:
        return call("exporters.probe:cold_start", request | {"threads": 1, "shape": list(shape)}).peak_rss_bytes, None
    except ProfileError as error:
        return None, str(error)


def outcomes(subject: dict[str, Any], data: Any, preprocess: Any) -> np.ndarray:
    """Whether each test image was classified rightly, bool (images,)."""
    right = []
    with open_subject(subject, (EVALUATION_BATCH, *data.input_size), 1) as runner:
        for chosen in batches(data.test):
            feeds = {runner.inputs[0].name: preprocess(data.source.test.load(chosen))}
            (logits,) = runner(feeds).values()
            right.append(logits.argmax(axis=1) == data.source.test.labels[chosen])
    return np.concatenate(right)


def batches(indices: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(indices), EVALUATION_BATCH):
        yield indices[start : start + EVALUATION_BATCH]


def complete(network: dict[str, Any], folder: Path, data: Any, preprocess: Any) -> None:
    """Add accuracy (with the outcome of every image beside it) and memory to what is not there yet."""
    for subject in network["subjects"]:
        print(f"{folder.name}: {subject['name']}", file=sys.stderr)
        subject["peak_memory_bytes"], why = memory_of(subject, (1, *network["input"]))
        if why:
            subject["no_memory"] = why
        if data is None:
            continue
        right = outcomes(subject, data, preprocess)
        file = folder / f"right-{subject['name']}.npy"
        np.save(file, right)
        subject |= {"right": str(file), "accuracy": {"value": float(right.mean()), "n": len(right)}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="a finished CIFAR-10 run; without, torchvision's networks alone")
    parser.add_argument("--work", type=Path, required=True, help="the folder for everything that is made")
    parser.add_argument(
        "--rivals", action="store_true", help="also make what Olive, NNCF and ONNX Runtime make of them"
    )
    parser.add_argument(
        "--olive", type=Path, help="python of an environment with olive-ai, where it is not in this one"
    )
    parser.add_argument("--only", help="names of networks, with commas between")
    args = parser.parse_args()
    import rival_tools

    index = args.work / "lineup.json"
    kept = json.loads(index.read_text()) if index.is_file() else {"networks": {}, "missing": {}}
    networks, missing = kept["networks"], kept["missing"]  # of other calls into the same folder
    for name in ("cifar10", *TORCHVISION):
        if args.only and name not in args.only.split(","):
            continue
        folder, data, preprocess = (args.work / name).absolute(), None, None
        if name == "cifar10":
            if args.cifar is None:
                missing[name] = "no --cifar RUN was given"
                continue
            from pipeline.reports.report import load

            run = args.cifar.absolute()
            network = network_of_run(run, folder)
            data, preprocess = images_of(run, load(run))
        else:
            network = network_of_torchvision(name, folder)
        if args.rivals:
            made, failed = rival_tools.make_all(folder, args.olive)
            network["subjects"] += made
            missing |= {f"{name}: {tool}": why for tool, why in failed.items()}
        complete(network, folder, data, preprocess)
        networks[name] = network
        command = " ".join(["python", *sys.argv])
        index.write_text(json.dumps({"command": command, "networks": networks, "missing": missing}, indent=1))
    for what, why in missing.items():
        print(f"missing: {what}: {why}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
