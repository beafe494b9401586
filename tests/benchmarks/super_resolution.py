"""PSNR and SSIM of a run's networks and files on whole folders of photographs, as the field prints them.

    python tests/benchmarks/super_resolution.py artifacts/paper003-super-resolution \\
        --set Set5=Set5/HR --set Set14=Set14 > artifacts/reference/super-resolution-set5-set14.json
    python tests/benchmarks/super_resolution.py RUN --montage astronaut.png 4,34,42 OUT.png

Every subject sees tiles of its own input size, as on a device; `teacher, whole images` is how papers run it. The inputs
are the bicubic reductions of the photographs, cut to multiples of the scale; the border of the scale is not judged.
The montage is a square of one photograph: input, teacher, student, int8 file, target; top and left in input pixels.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from exporters import open_runner
from exporters.artifact import file_sha256
from pipeline.data.imagefolder import image_files
from pipeline.data.super_resolution import Judged, pair, read
from pipeline.environment import collect, cpu_model
from pipeline.gates.intervals_mean import mean_bounds, moments_of
from pipeline.models.checkpoint import load_checkpoint
from pipeline.reports.png import encode
from pipeline.tasks.dense import interval_of, moments
from pipeline.tasks.super_resolution import SuperResolution as Task
from pipeline.tiles import tiled

Answer = Callable[[np.ndarray], np.ndarray]
RUNTIMES = ("onnxruntime", "openvino")


def of_network(path: Path, *, whole: bool = False) -> Answer:
    """image uint8 (H, W, 3) -> raw output float32 (sH, sW, 3), by torch."""
    import torch

    torch.set_num_threads(1)
    module, meta = load_checkpoint(path)

    def run(tiles: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255).numpy()

    side = meta.input_size[1:]
    return lambda image: tiled(run, image, tile=image.shape[:2] if whole else side, overlap=Task.overlap)


def of_file(path: Path, runtime: str) -> Answer:
    runner = open_runner(runtime, path, threads=1).__enter__()
    spec, output = runner.inputs[0], runner.outputs[0].name

    def run(tiles: np.ndarray) -> np.ndarray:
        scaled = (tiles.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
        return np.concatenate([runner({spec.name: scaled[i : i + 1]})[output] for i in range(len(scaled))])

    return lambda image: tiled(run, image, tile=spec.shape[2:], overlap=Task.overlap)


def files_of(run: Path) -> dict[str, Path]:
    """Networks and files of a run that has got as far as `quantize`, by their names in a report."""
    found = {
        "teacher": next(run.glob("teacher-????????????/teacher.safetensors")),
        "control": next(run.glob("control-????????????/student.safetensors")),
        "student": next(run.glob("distill-????????????/student.safetensors")),
    }
    for path in sorted([*run.glob("export-????????????/*.onnx"), *run.glob("quantize-????????????/*.onnx")]):
        found[f"{path.stem}@"] = path
    return found


def subjects(files: dict[str, Path], only: list[str]) -> dict[str, Answer]:
    """The portable int8 form has no int8 kernels on ONNX Runtime's CPU: slow there, its accuracy is the same sum."""
    teacher = files["teacher"]
    makers: dict[str, Callable[[], Answer]] = {
        "bicubic": lambda: bicubic,
        "teacher, whole images": lambda: of_network(teacher, whole=True),
    }
    for name, path in files.items():
        if name.endswith("@"):
            for runtime in RUNTIMES:
                makers[name + runtime] = functools.partial(of_file, path, runtime)
        else:
            makers[name] = functools.partial(of_network, path)
    return {name: make() for name, make in makers.items() if not only or name in only}


def bicubic(image: np.ndarray) -> np.ndarray:
    return Task.baseline(image, (4 * image.shape[0], 4 * image.shape[1], 3))


def judge(answers: dict[str, Answer], folder: Path, *, psnr_only: bool) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in answers}
    files = image_files(folder)
    for file in files:
        image, target = Judged(pairs=[pair(read(file), 4, 0.0)], border=4)[0]
        for name, answer in answers.items():
            output = answer(image)
            outcome = {"psnr_y": Task.scores([output], [target])} if psnr_only else Task.outcomes([output], [target])
            found[name].append({key: round(float(value[0]), 4) for key, value in outcome.items()})
    columns = {name: {key: np.array([one[key] for one in each]) for key in each[0]} for name, each in found.items()}
    return {
        "n": len(files),
        "mean": {name: {key: round(float(c.mean()), 4) for key, c in each.items()} for name, each in columns.items()},
        "pairs": pairs(columns),
    }


def pairs(columns: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """PSNR gained over the control and lost against the teacher, with the interval that the report states (95 %) and
    the bound that the gate asks for (99 %, one-sided)."""
    made = []
    for against in ("teacher", "teacher@openvino", "control"):
        for name in columns:
            if against in columns and name not in (against, "bicubic") and "teacher" not in name:
                row = {"metric": "psnr_y", **moments(columns[name]["psnr_y"] - columns[against]["psnr_y"])}
                if row["n"] > 1 and row["sd"] > 0:
                    row["ci95"] = list(interval_of(row))
                    row["lower99"] = mean_bounds(moments_of(row), 0.99).lower
                made.append({"subject": name, "against": against, **row})
    return made


def montage(answers: dict[str, Answer], file: Path, place: tuple[int, int, int], out: Path) -> dict[str, Any]:
    image, target = pair(read(file), 4, 0.0)
    top, left, side = place
    names = ["bicubic", "teacher", "student", next(name for name in answers if name.startswith("onnx-int8@openvino"))]
    shown = [Task.postprocess(answers[name](image)) for name in names] + [target]
    window = slice(4 * top, 4 * (top + side)), slice(4 * left, 4 * (left + side))
    small = image[top : top + side, left : left + side].repeat(4, 0).repeat(4, 1)
    gap = np.full((4 * side, 4, 3), 255, np.uint8)
    strip = [part for picture in [small, *(one[window] for one in shown[1:])] for part in (picture, gap)][:-1]
    out.write_bytes(encode(np.concatenate(strip, axis=1)))
    return {"shows": ["input", *names[1:], "target"], "bytes": out.stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=FOLDER", dest="sets")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a subject; give it once for each")
    parser.add_argument("--psnr-only", action="store_true", help="leave out SSIM, which takes longer than the networks")
    parser.add_argument("--montage", nargs=3, metavar=("PHOTOGRAPH", "TOP,LEFT,SIDE", "OUT"))
    options = parser.parse_args()
    files = files_of(options.run)
    answers = subjects(files, options.only)
    unknown = set(options.only) - set(answers)
    if unknown:
        parser.error(f"--only: no subject {min(unknown)!r}; there are {', '.join(map(repr, subjects(files, [])))}")
    start = time.process_time()
    found: dict[str, Any] = {
        "command": shlex.join(["python", "tests/benchmarks/super_resolution.py", *sys.argv[1:]]),
        "hardware": {"cpu": cpu_model(), "threads": 1},
        "versions": collect().get("packages"),
        "sha256": {name.rstrip("@"): file_sha256(path) for name, path in files.items()},
        "training": {
            name: json.loads((files[name].parent / "training.json").read_text()) for name in ("control", "student")
        },
        "tile": list(load_checkpoint(files["teacher"])[1].input_size),
    }
    for text in options.sets:
        name, _, folder = text.partition("=")
        found[name] = judge(answers, Path(folder), psnr_only=options.psnr_only)
    if options.montage:
        photograph, place, out = options.montage
        top, left, side = map(int, place.split(","))
        found["montage"] = montage(answers, Path(photograph), (top, left, side), Path(out))
    found["cpu_seconds"] = round(time.process_time() - start, 1)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
