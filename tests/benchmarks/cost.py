"""What it costs to ask: verify, gate and report on a run with 50,000 test samples; and cost against data size.

    python tests/benchmarks/cost.py --json artifacts/reference/cost.json

Each command is a fresh process; limits are on wall time, and processor time stands beside it: another program on
the machine changes the one and not the other. Growth: data preparation, evaluation and verify at 1, 4 and 16 times
the data, each in a fresh process; the exponent is the slope of log cost over log size (1 is linear).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

LIMIT_S = 2.0
TIMES = (1, 4, 16)
BASE = 3000  # images at one time

# One part of the chain at a given size; prints seconds of processor and peak bytes beyond the start.
PARTS = {
    "data": """
from pipeline.recipe import Data, Recipe
from pipeline.stage import Context
from pipeline.stages import data
recipe = Recipe.model_validate({"name": "x", "data": {"name": "arrays", "root": sys.argv[1] + "/x.npz"},
    "teacher": {"model": "mlperf-resnet8"}, "student": {"model": "mlperf-resnet8"}})
stage = data.stage(recipe)
work = lambda: stage.run(Context(stage=stage, folder=folder, inputs={}, say=lambda line: None))
""",
    "evaluate": """
from cli_runner import brightness_net
from exporters import open_runner
from exporters.artifact import Preprocessing
from pipeline.evaluate import Subject, evaluate
from pipeline.tasks.classification import Classification
path = brightness_net(folder / "net.onnx", side=32)
images = InMemory(np.load(sys.argv[1] + "/x.npz")["x_test"], np.arange(n, dtype=np.int64) % 2)
def work():
    with open_runner("onnxruntime", path, threads=1, device="cpu", shapes=None) as runner:
        subject = Subject(runner=runner, preprocess=Preprocessing.of_file(path).apply)
        evaluate({"net": subject}, images, np.arange(n), Classification)
""",
    "verify": """
from sample_run import sample_run
from pipeline.bundle.verify_run import verify_run
run = sample_run(folder, n=n, timed=False)
work = lambda: verify_run(run)
""",
}
AROUND = """
import resource, sys, time
from pathlib import Path
import numpy as np
from pipeline.data.source import InMemory
from pipeline.environment import peak_rss_bytes, reset_peak_rss
folder, n = Path(sys.argv[1]), int(sys.argv[2])
{part}
reset_peak_rss()
begin, before = time.process_time(), peak_rss_bytes()
work()
print(time.process_time() - begin, max(0, peak_rss_bytes() - before))
"""


def asked(n: int) -> list[dict[str, Any]]:
    """Each command on a run of `n` test samples, in a fresh process: exit code, seconds, peak memory."""
    from sample_run import sample_run

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run = sample_run(Path(folder), n=n)
        for words in (["verify", run], ["gate", run], ["report", run]):
            command = [sys.executable, "-m", "pipeline", *map(str, words)]
            before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            rows.append(
                {"command": words[0], "n": n, "exit": done.returncode, "wall_s": round(time.monotonic() - begin, 2)}
                | {"cpu_s": round(cpu, 2), "peak_rss_bytes": after.ru_maxrss * 1024}
            )
    return rows


def growth(part: str) -> dict[str, Any]:
    """Processor seconds and peak bytes of one part at 1, 4 and 16 times the data, and the exponents."""
    import numpy as np

    points = []
    for times in TIMES:
        n = BASE * times
        with tempfile.TemporaryDirectory() as folder:
            images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
            labels = np.arange(n) % 2
            np.savez(f"{folder}/x.npz", x_train=images, y_train=labels, x_test=images[::-1], y_test=labels)
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2]), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", AROUND.format(part=PARTS[part]), folder, str(n)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
        seconds, peak = done.stdout.split()[-2:]
        points.append({"n": n, "cpu_s": round(float(seconds), 3), "peak_bytes": int(peak)})
    return {"part": part, "points": points} | {
        f"exponent_{key}": exponent([(point["n"], point[key]) for point in points]) for key in ("cpu_s", "peak_bytes")
    }


def exponent(points: list[tuple[int, float]]) -> float | None:
    """The least-squares slope of log cost over log size; None where a cost is too small to be seen."""
    if any(cost <= 0 for _, cost in points):
        return None
    logs = [(math.log(n), math.log(cost)) for n, cost in points]
    x, y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return round(sum((a - x) * (b - y) for a, b in logs) / sum((a - x) ** 2 for a, _ in logs), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    parser.add_argument("--samples", type=int, default=50_000)
    given = parser.parse_args()
    from pipeline.environment import collect

    environment = collect()
    record: dict[str, Any] = {
        "command": "python tests/benchmarks/cost.py --json artifacts/reference/cost.json",
        "hardware": {key: environment[key] for key in ("cpu", "cores", "memory_bytes")},
        "source": environment["source"],
        "load_average": os.getloadavg(),
        "asked": asked(given.samples),
        "growth": [],
    }
    for row in record["asked"]:
        print(f"{row['command']:<10} {row['wall_s']:6.2f} s wall  {row['cpu_s']:6.2f} s processor  exit {row['exit']}")
    for part in PARTS:
        found = growth(part)
        record["growth"].append(found)
        costs = "  ".join(f"{point['n']:,}: {point['cpu_s']:g} s" for point in found["points"])
        print(
            f"{part:<10} time ^{found['exponent_cpu_s']}, memory ^{found['exponent_peak_bytes']}  {costs}", flush=True
        )
        if given.json:
            given.json.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(1 if any(row["wall_s"] > LIMIT_S for row in record["asked"]) else 0)


if __name__ == "__main__":
    main()
