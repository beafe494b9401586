"""PSNR and SSIM of a run's networks and files on whole folders of photographs, as the field prints them.

    python tests/benchmarks/super_resolution.py artifacts/paper003-super-resolution \\
        --set Set5=Set5/HR --set Set14=Set14 > artifacts/reference/super-resolution-set5-set14.json
    python tests/benchmarks/super_resolution.py RUN --montage astronaut.png 60,150,64 OUT.png

Every subject sees tiles of its own input size, as on a device; `teacher, whole images` is how papers run it. The inputs
are the bicubic reductions of the photographs, cut to multiples of the scale; the border of the scale is not judged.
The montage is a square of one photograph: input, teacher, student, int8 file, target; top and left in input pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from exporters import open_runner
from pipeline.data.imagefolder import image_files
from pipeline.data.super_resolution import Judged, pair, read
from pipeline.environment import collect, cpu_model
from pipeline.models.checkpoint import load_checkpoint
from pipeline.png import encode
from pipeline.report import load
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


def subjects(run: Path, report: dict[str, Any]) -> dict[str, Answer]:
    rows = {row["name"]: run / row["path"] for row in report["subjects"]}
    networks = {name: path for name, path in rows.items() if "@" not in name}
    files = {name.partition("@")[0]: path for name, path in rows.items() if "@" in name}
    found = {"bicubic": bicubic, "teacher, whole images": of_network(networks["teacher"], whole=True)}
    found |= {name: of_network(path) for name, path in networks.items()}
    for name, path in files.items():
        if name != "teacher":
            # The portable int8 form has no int8 kernels on ONNX Runtime's CPU: its accuracy there is the same sum.
            found |= {f"{name}@{runtime}": of_file(path, runtime) for runtime in RUNTIMES}
    return found


def bicubic(image: np.ndarray) -> np.ndarray:
    return Task.baseline(image, (4 * image.shape[0], 4 * image.shape[1], 3))


def judge(answers: dict[str, Answer], folder: Path) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {name: {} for name in answers}
    files = image_files(folder)
    for file in files:
        image, target = Judged(pairs=[pair(read(file), 4, 0.0)], border=4)[0]
        for name, answer in answers.items():
            outcome = Task.outcomes([answer(image)], [target])
            found[name][file.stem] = {key: round(float(value[0]), 4) for key, value in outcome.items()}
    means = {
        name: {key: round(float(np.mean([one[key] for one in each.values()])), 4) for key in Task.metrics}
        for name, each in found.items()
    }
    return {"n": len(files), "mean": means, "images": found}


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
    parser.add_argument("--montage", nargs=3, metavar=("PHOTOGRAPH", "TOP,LEFT,SIDE", "OUT"))
    options = parser.parse_args()
    report = load(options.run)
    answers = subjects(options.run, report)
    start = time.process_time()
    found: dict[str, Any] = {
        "command": " ".join(["python", "tests/benchmarks/super_resolution.py", *sys.argv[1:]]),
        "run": {key: report[key] for key in ("command", "created")},
        "sha256": {row["name"]: row["sha256"] for row in report["subjects"]},
        "hardware": {"cpu": cpu_model(), "threads": 1},
        "versions": collect().get("packages"),
        "tile": list(load_checkpoint(options.run / report["subjects"][0]["path"])[1].input_size),
    }
    for text in options.sets:
        name, _, folder = text.partition("=")
        found[name] = judge(answers, Path(folder))
    if options.montage:
        photograph, place, out = options.montage
        top, left, side = map(int, place.split(","))
        found["montage"] = montage(answers, Path(photograph), (top, left, side), Path(out))
    found["cpu_seconds"] = round(time.process_time() - start, 1)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
