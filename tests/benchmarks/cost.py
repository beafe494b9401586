"""What it costs to ask: the whole chain on 50,000 test samples once more, and every question about it; and cost
against data size.

    python tests/benchmarks/cost.py --json artifacts/reference/cost.json [--store DIR]

A chain runs first (handwritten digits, of which the test images are drawn again with noise until there are 50,000);
--store keeps it for the next call. Then each command is asked three times, in a fresh process: the same run again with
every stage fresh, plan, gate, verify (of the run, and of its bundle with all 50,000 images) and report. The limit is on
the slowest wall time of three, and processor time stands beside it: another program changes the one and not the other.

Growth: data preparation, calibration, evaluation, report and verify at 1, 4 and 16 times the data, each in a fresh
process. The exponent is the slope of log cost over log size (1 is linear), of processor time and of peak memory.
Exits with 1 where a command takes longer than 2 s, or a cost grows faster than linearly.
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
ROUNDS = 3
TIMES = (1, 4, 16)
BASE = 3000  # images at one time
LINEAR = 1.1  # an exponent up to here is no faster than linear: three timings on a busy machine spread by so much
RUN = "digits-smoke"

# One part of the chain at a given size; `work` is what is measured.
PARTS = {
    "data": """
from pipeline.recipe import Recipe
from pipeline.stage import Context
from pipeline.stages import data
recipe = Recipe.model_validate({"name": "x", "data": {"name": "arrays", "root": sys.argv[1] + "/x.npz"},
    "teacher": {"model": "mlperf-resnet8"}, "student": {"model": "mlperf-resnet8"}})
stage = data.stage(recipe)
work = lambda: stage.run(Context(stage=stage, folder=folder, inputs={}, say=lambda line: None))
""",
    "calibration, min-max": """
work = calibration(folder, n, "minmax")
""",
    "calibration, entropy": """
work = calibration(folder, n, "entropy")
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
    "report": """
from sample_run import sample_run
from pipeline.reports.report import load, render_html, render_markdown
run = sample_run(folder, n=n, timed=False)
def work():
    report = load(str(run))
    render_markdown(report), render_html(report)
""",
    "verify": """
from sample_run import sample_run
from pipeline.bundle.verify_run import verify_run
run = sample_run(folder, n=n, timed=False)
work = lambda: verify_run(run)
""",
}
# prints seconds of processor and peak bytes beyond the start
AROUND = """
import resource, sys, time
from pathlib import Path
import numpy as np
from cost import calibration
from pipeline.data.source import InMemory
from pipeline.environment import peak_rss_bytes, reset_peak_rss
folder, n = Path(sys.argv[1]), int(sys.argv[2])
{part}
reset_peak_rss()
begin, before = time.process_time(), peak_rss_bytes()
work()
print(time.process_time() - begin, max(0, peak_rss_bytes() - before))
"""


def calibration(folder: Path, n: int, method: str) -> Any:
    """What quantizes a small residual net on `n` images, one in memory at a time."""
    import exporter_nets
    import numpy as np

    from exporters.quantize_onnx import quantize_int8

    source = exporter_nets.export(folder / "net.onnx")

    class Stream:
        """Pairs of images, the same at every reading; of none is kept more than two."""

        def __iter__(self) -> Any:
            rng = np.random.default_rng(0)
            for _ in range(n // 2):
                yield rng.random((2, 3, 16, 16), np.float32)

    return lambda: quantize_int8(source, folder / "int8.onnx", form="portable", method=method, batches=Stream())  # type: ignore[arg-type]


def chain_of(n: int, store: Path) -> list[str]:
    """The words after `edgestill run` of a small chain whose gate set has `n` samples; its data lie in `store`."""
    import numpy as np
    from sklearn.datasets import load_digits

    path = store / f"digits-{n}.npz"
    if not path.exists():
        store.mkdir(parents=True, exist_ok=True)
        found = load_digits()
        images, labels = (found.images * 15.9).astype(np.uint8)[..., None], found.target
        rng = np.random.default_rng(0)
        drawn = rng.integers(1000, len(images), n)
        noisy = np.clip(images[drawn] + rng.integers(-9, 10, (n, *images.shape[1:])), 0, 255).astype(np.uint8)
        np.savez(path, x_train=images[:1000], y_train=labels[:1000], x_test=noisy, y_test=labels[drawn])
    settings = ("data.name=arrays", f"data.root={path}", 'profile.runtimes=["onnxruntime"]')
    return ["digits", "--smoke", "--out", str(store), *(word for text in settings for word in ("--set", text))]


def ask(*words: str | Path) -> tuple[subprocess.CompletedProcess[str], dict[str, float]]:
    """`edgestill WORDS` in a fresh process: what it said, and wall and processor seconds."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    wall, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, 3, 4), done.stderr
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done, {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def asked(n: int, store: Path) -> list[dict[str, Any]]:
    """Every question on a finished run of `n` test samples, `ROUNDS` times."""
    chain = chain_of(n, store)
    ask("run", *chain)
    run, bundle = store / RUN, store / f"digits-{n}.zip"
    ask("bundle", run, "--out", bundle)
    assert all(row["state"] == "fresh" for row in json.loads(ask("plan", *chain, "--json")[0].stdout))
    questions: dict[str, list[str | Path]] = {
        "run, all fresh": ["run", *chain],
        "plan": ["plan", *chain],
        "gate": ["gate", run],
        "verify": ["verify", run],
        "verify, bundle": ["verify", bundle],
        "report": ["report", run],
    }
    rows = []
    for name, words in questions.items():
        answers = [ask(*words) for _ in range(ROUNDS)]
        assert not any("building" in done.stderr for done, _ in answers), name
        costs = {key: [cost[key] for _, cost in answers] for key in ("wall_s", "cpu_s")}
        rows.append({"command": name, "n": n, "exit": answers[0][0].returncode, **costs})
    return rows


def growth(part: str) -> dict[str, Any]:
    """Processor seconds and peak bytes of one part at 1, 4 and 16 times the data, and the exponents."""
    import numpy as np

    points = []
    for times in TIMES:
        n = BASE * times
        with tempfile.TemporaryDirectory() as folder:
            images, others = np.random.default_rng(0).integers(0, 256, (2, n, 32, 32, 3), dtype=np.uint8)
            labels = np.arange(n) % 2
            np.savez(f"{folder}/x.npz", x_train=images, y_train=labels, x_test=others, y_test=labels)
            paths = os.pathsep.join([*sys.path[:2], str(Path(__file__).parent)])
            command = [sys.executable, "-c", AROUND.format(part=PARTS[part]), folder, str(n)]
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                check=False,
            )
        assert done.returncode == 0, done.stderr
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


def failures(record: dict[str, Any]) -> list[str]:
    """What takes too long or grows too fast, in words."""
    slow = [
        f"{row['command']}: {max(row['wall_s'])} s, not {LIMIT_S:g}"
        for row in record["asked"]
        if max(row["wall_s"]) > LIMIT_S
    ]
    steep = [
        f"{row['part']}: {key} grows with exponent {row[key]}"
        for row in record["growth"]
        for key in ("exponent_cpu_s", "exponent_peak_bytes")
        if (row[key] or 0.0) > LINEAR
    ]
    return slow + steep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep the chain here for the next call")
    given = parser.parse_args()
    from pipeline.environment import collect

    environment = collect()
    record: dict[str, Any] = {
        "command": "python tests/benchmarks/cost.py --json artifacts/reference/cost.json",
        "hardware": {key: environment[key] for key in ("cpu", "cores", "memory_bytes")},
        "versions": {"python": environment["python"]} | environment["packages"],
        "source": environment["source"],
        "load_average": os.getloadavg(),
        "limit_s": LIMIT_S,
        "growth": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        record["asked"] = asked(given.samples, (given.store or Path(temporary)).absolute())
    for row in record["asked"]:
        print(
            f"{row['command']:<20} {max(row['wall_s']):6.2f} s wall, {max(row['cpu_s']):6.2f} s processor (the most of "
            f"{ROUNDS}), exit {row['exit']}",
            flush=True,
        )
    for part in PARTS:
        found = growth(part)
        record["growth"].append(found)
        costs = "  ".join(f"{p['n']:,}: {p['cpu_s']:g} s, {p['peak_bytes'] / 1e6:.0f} MB" for p in found["points"])
        print(
            f"{part:<20} time ^{found['exponent_cpu_s']}, memory ^{found['exponent_peak_bytes']}  {costs}", flush=True
        )
    record["load_average_at_the_end"] = os.getloadavg()
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    found = failures(record)
    print("\n".join(found) or f"all within {LIMIT_S:g} s, nothing grows faster than linearly")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
