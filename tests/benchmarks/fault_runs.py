"""What the cases of `faults.py` share: a tiny run, a server that forks it, and what must not depend on any fault."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import manifest
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NAME = "tiny"
RECIPE_FILE = "tiny.toml"
RECIPE = """
name = "tiny"
data = { name = "arrays", root = "x.npz", validation = 0.2 }
teacher = { model = "fault_net:build?width=12", train = { epochs = 3, batch_size = 32, lr = 0.05 } }
student = { model = "fault_net:build?width=6" }
distill = { epochs = 3, batch_size = 32, lr = 0.05, ema = 0.9, augment = { pad_crop = 1 }, teacher_outputs = "table" }
export = [{ precisions = ["fp32"] }]
quantize = { samples = 16, forms = ["cpu"] }
profile = { runtimes = ["onnxruntime"], min_seconds = 0.01, blocks = 4 }
gate = [{ metric = "size_bytes", max = 1e9 }]
"""
NET = """
from torch import nn
def build(num_classes: int, in_channels: int, width: int = 6) -> nn.Module:
    layers = nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4 * width, num_classes))
"""
STAGES = ("data", "teacher", "teacher-check", "table", "distill", "control", "export", "quantize", "evaluate")
STAGES += ("profile", "gate")
TIMED = ("profile", "gate")  # their files hold times
LEFT = (".partial", ".broken")  # of an interrupted run; none of a finished one


def prepare(folder: Path) -> None:
    """Recipe, network and data: 240 + 160 images of 8 x 8 in four classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 240), ("test", 160)):
        labels = np.arange(n) % 4
        images = rng.normal(60, 30, (n, 8, 8))
        for place, label in enumerate(labels):
            images[place, 4 * (label // 2) :, 4 * (label % 2) :] += 60
        arrays |= {f"x_{part}": np.clip(images, 0, 255).astype(np.uint8), f"y_{part}": labels}
    np.savez(folder / "x.npz", **arrays)
    (folder / "fault_net.py").write_text(NET)
    (folder / RECIPE_FILE).write_text(RECIPE)


class Server:
    """Forks one command line after another; what it says and how long each stage took is handed back."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the server died")
        return line.rstrip("\n")

    def start(self, *arguments: str, **options: Any) -> int:
        """Begin a run; its process id, which is that of its group too."""
        assert self.process.stdin is not None
        print(json.dumps({"arguments": arguments, **options}), file=self.process.stdin, flush=True)
        while not (line := self._line()).startswith("pid "):
            pass
        return int(line.split()[1])

    def wait(self, on_line: Callable[[str], None] = lambda line: None) -> tuple[int, list[str]]:
        """Exit code (negative: the signal that ended it) and what was said."""
        said: list[str] = []
        while not (line := self._line()).startswith("exit "):
            if line:
                said.append(line)
                on_line(line)
        return int(line.split()[1]), said

    def run(
        self,
        store: Path,
        *words: str,
        recipe: str = RECIPE_FILE,
        on_line: Callable[[str], None] = lambda line: None,
        **options: Any,
    ) -> tuple[int, list[str]]:
        self.start("run", recipe, "--out", str(store), "--json", *words, **options)
        return self.wait(on_line)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A run that met no fault: what must last, the seconds of each stage and how often it changed the disk."""

    facts: dict[str, Any]
    seconds: dict[str, float]
    changes: dict[str, int]


def whole(server: Server, store: Path, *words: str, recipe: str = RECIPE_FILE, **options: Any) -> Whole:
    """Run to the end in `store`. Raises RuntimeError when that fails."""
    began: dict[str, float] = {}
    seconds: dict[str, float] = {}
    changes: dict[str, int] = {}

    def on_line(line: str) -> None:
        stage, _, rest = line.partition(": ")
        if rest.startswith("building"):
            began[stage] = time.monotonic()
        elif rest.startswith("done"):
            seconds[stage] = time.monotonic() - began[stage]
        elif rest.startswith("changed "):
            changes[stage] = int(rest.split()[1])

    code, said = server.run(store, *words, recipe=recipe, on_line=on_line, die=["no stage", 0], **options)
    if code or tuple(seconds) != STAGES:
        raise RuntimeError(f"the run without a fault ended with {code}: {said[-1]}")
    return Whole(facts=lasting(store), seconds=seconds, changes=changes)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("fault_server.py"))]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
    )
    try:
        yield Server(process)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


def kill(pid: int) -> None:
    assert pid > 1, "a process group of its own, or this would end the benchmark"
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.killpg(pid, signal.SIGKILL)


def finished(store: Path) -> dict[str, str]:
    """Folder with a final name -> digest. Raises when one of them is not whole."""
    digests = {}
    for path in sorted((store / NAME).glob("*-*/")):
        if path.suffix not in LEFT:
            record = manifest.read(path)
            manifest.verify(path, record["fingerprint"])
            digests[path.name] = record["digest"]
    return digests


def lasting(store: Path) -> dict[str, Any]:
    """All of a finished store that no fault may change: artifact hashes, outcomes, figures; times left out.

    Raises when a folder with a final name is not whole, or when something half-written was left.
    """
    folder = store / NAME
    left = [path for path in folder.rglob("*") if "tmp" in path.name or path.suffix in LEFT]
    if left:
        raise AssertionError(f"{left[0].name} was left")
    facts: dict[str, Any] = {
        name: digest for name, digest in finished(store).items() if name.rpartition("-")[0] not in TIMED
    }
    report = json.loads((folder / "report.json").read_text())
    keys = ("sha256", "path", "accuracy", "agreement", "parity", "params", "macs", "size_bytes")
    facts |= {row["name"]: {key: row[key] for key in keys} for row in report["subjects"]}
    facts["outcomes"] = [row["stored"]["outcomes"] for row in report["subjects"]]
    facts["pairs"] = [row for row in report["comparisons"] if row["kind"] == "accuracy"]
    facts |= {key: report[key] for key in ("data", "recipe", "distillation", "verdict")}
    (released,) = (folder / "release").iterdir()
    facts["released"] = manifest.sha256_file(released)
    chosen = next(row for row in report["subjects"] if row["name"] == report["selection"]["chosen"])
    if facts["released"] != chosen["sha256"]:
        raise AssertionError("another file than the chosen one was released")
    return facts


def differing(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """What is not the same; empty when nothing differs."""
    odd = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    return f"{len(odd)} facts differ, such as {odd[0]}" if odd else ""


def one_line(said: list[str]) -> str:
    """What is wrong with how a failure was told; empty when it is one line that says `error: `."""
    errors = [line for line in said if line.startswith("error: ")]
    if any("Traceback" in line for line in said):
        return "a traceback"
    if len(errors) != 1:
        return f"{len(errors)} error lines"
    return errors[0] if "a fault of edgestill" in errors[0] else ""


@dataclass
class Bench:
    """Where cases run, the facts of a run that met no fault, and the source of chance."""

    folder: Path
    server: Server
    whole: Whole
    random: random.Random
    cases: int | None
    so_far: Callable[[Tally], None] = lambda tally: None  # a long fault is written down as it goes

    def many(self, usual: int) -> int:
        return self.cases or usual

    def same(self, store: Path) -> str:
        """What differs from the run that met no fault; empty when nothing does."""
        try:
            found = lasting(store)
        except (AssertionError, OSError, ValueError, UserError) as error:
            return f"{type(error).__name__}: {error}"
        return differing(self.whole.facts, found)

    def sound(self, store: Path) -> str:
        """What is wrong in an unfinished store; empty when each folder with a final name is whole and as expected."""
        try:
            for folder, digest in finished(store).items():
                if self.whole.facts.get(folder, digest) != digest:
                    return f"{folder} has other bytes"
        except (OSError, ValueError, UserError) as error:
            return f"{type(error).__name__}: {error}"
        return ""


class Tally:
    """Cases tried and what failed of one fault."""

    def __init__(self, fault: str, what: str) -> None:
        self.fault, self.what = fault, what
        self.tried = 0
        self.failures: list[str] = []
        self.counts: dict[str, int] = {}
        self.begin = time.monotonic()
        self.seconds: float | None = None  # where they are known otherwise

    def case(self, where: str, trouble: str = "") -> None:
        self.tried += 1
        self.counts[where] = self.counts.get(where, 0) + 1
        if trouble:
            self.failures.append(f"{where}: {trouble}")

    def row(self) -> dict[str, Any]:
        return {
            "fault": self.fault,
            "what": self.what,
            "tried": self.tried,
            "failed": len(self.failures),
            "failures": self.failures[:20],
            "where": self.counts,
            "seconds": round(time.monotonic() - self.begin if self.seconds is None else self.seconds, 1),
        }
