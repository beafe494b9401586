"""kill -9 or Ctrl-C in the real chain: the resumed run ends with what an uninterrupted one ends with."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runner import cli

from pipeline import manifest

ROOT = Path(__file__).parent.parent
RECIPE = """
name = "tiny"
data = { name = "digits", validation = 0.1, test = 0.4 }
teacher = { model = "mlperf-resnet8", train = { epochs = 3, batch_size = 64, lr = 0.05 } }
student = { model = "mlperf-resnet8" }
distill = { epochs = 3, batch_size = 64, lr = 0.05, ema = 0.9, augment = { pad_crop = 1 }, teacher_outputs = "table" }
export = [{ precisions = ["fp32"] }]
quantize = { samples = 16, forms = ["cpu"] }
profile = { runtimes = ["onnxruntime"], min_seconds = 0.05 }
gate = [{ metric = "size_bytes", max = 1e9 }]
"""
TRAINED = ("teacher", "distill", "control")
BEFORE = ("data", "teacher", "teacher-check", "table")
STAGES = (*BEFORE, "distill", "control", "export", "quantize", "evaluate", "profile", "gate")
TIMED = ("profile", "gate")  # their files hold times

# The heavy imports are paid for once: every run is a fork of this process, with a process group of its own. Training
# writes checkpoints as fast as half of its time allows, instead of every ten seconds. In a stage that trains the death
# is counted in checkpoints, not in seconds: however fast the machine, it comes in the middle.
SERVER = """
import json, os, signal, sys, threading, time
import onnx, onnxruntime, onnxscript, scipy.stats, sklearn.datasets, torch
import exporters.to_onnx, exporters.quantize_onnx, exporters.run_torch, exporters.parity, profiles.flops
from pipeline import chain, train, train_state, teacher_check
from pipeline.cli.main import main
train_state.AT_LEAST_S, train_state.SHARE_OF_TIME = 0.0, 0.5
save = train_state.Checkpointer.save
def die_after(stage, saves, seconds):
    def saving(self, parts):
        nonlocal saves
        save(self, parts)
        if self.key.startswith(stage + "-"):
            saves -= 1
            if saves == 0:
                die = lambda: (time.sleep(seconds), os.killpg(os.getpid(), signal.SIGKILL))
                threading.Thread(target=die, daemon=True).start()
    train_state.Checkpointer.save = saving
print("ready", flush=True)
for line in sys.stdin:
    command = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        print("pid", os.getpid(), flush=True)  # said by the child itself, so that it comes before all else
        os.dup2(1, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 99
        try:
            if command["die"]:
                die_after(*command["die"])
            main(command["arguments"])
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    print("exit", os.waitstatus_to_exitcode(status), flush=True)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torch cannot be forked safely elsewhere")


class Server:
    """Runs command lines one after another; kills one when told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.random = random.Random(seed := random.SystemRandom().randrange(10**6))
        print(f"seed {seed}")  # shown by pytest when a test fails
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server died"
        return line.rstrip("\n")

    def run(self, store: Path, recipe: Path, *, kill_in: str = "", within_s: float = 0.0) -> tuple[int, dict[str, Any]]:
        """Exit code, and the lines said (`said`) with the seconds that each stage took (`seconds`).

        `kill_in`: the stage in which the process is killed, at a random moment of its first `within_s` seconds; a
        stage that trains kills itself, a random number of checkpoints and milliseconds after it began.
        """
        assert self.process.stdin is not None
        die = [kill_in, self.random.randint(1, 4), self.random.uniform(0, 0.01)] if kill_in in TRAINED else []
        command = {"arguments": ["run", str(recipe), "--out", str(store), "--json"], "die": die}
        print(json.dumps(command), file=self.process.stdin, flush=True)
        said: list[str] = []
        seconds: dict[str, float] = {}
        started: dict[str, float] = {}
        killer = None
        pid = 0
        while True:
            line = self._line()
            if line.startswith("exit "):
                if killer:
                    killer.join()
                return int(line.split()[1]), {"said": said, "seconds": seconds}
            if line.startswith("pid "):
                pid = int(line.split()[1])
                continue
            said.append(line)
            stage, _, rest = line.partition(": ")
            if rest.startswith("building"):
                started[stage] = time.monotonic()
                if stage == kill_in and not die:
                    killer = threading.Thread(target=self._kill, args=(pid, within_s))
                    killer.start()
            elif rest.startswith("done") and stage in started:
                seconds[stage] = time.monotonic() - started[stage]
                if kill_in == f"after {stage}":
                    killer = threading.Thread(target=self._kill, args=(pid, within_s))
                    killer.start()

    def _kill(self, pid: int, within_s: float) -> None:
        time.sleep(self.random.uniform(0, within_s))
        assert pid > 1, "a process group of its own, or this would end the tests"
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield Server(process)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


def finished(store: Path) -> dict[str, Path]:
    """Stage -> folder with a final name, each of them verified: nothing half-written may have one."""
    folders = {}
    for path in sorted((store / "tiny").glob("*-*/")):
        if path.suffix != ".partial":
            manifest.verify(path, manifest.read(path)["fingerprint"])
            folders[path.name.rpartition("-")[0]] = path
    return folders


def lasting(store: Path) -> dict[str, Any]:
    """All of a store that must not depend on when a run was killed: names, hashes and figures, times left out."""
    facts: dict[str, Any] = {}
    for stage, folder in finished(store).items():
        record = manifest.read(folder)
        if stage in TIMED:
            continue
        facts[folder.name] = record["digest"]
        facts |= {
            f"{folder.name}/{name}": entry for name, entry in record["files"].items() if name not in record["volatile"]
        }
    report = json.loads((store / "tiny" / "report.json").read_text())
    keys = ("sha256", "path", "accuracy", "agreement", "parity", "params", "macs", "size_bytes")
    facts |= {row["name"]: {key: row[key] for key in keys} for row in report["subjects"]}
    facts["outcomes"] = [row["stored"]["outcomes"] for row in report["subjects"]]
    facts["pairs"] = [row for row in report["comparisons"] if row["kind"] == "accuracy"]
    facts |= {key: report[key] for key in ("data", "recipe", "distillation", "verdict")}
    return facts


def test_a_run_killed_in_every_stage_ends_with_the_same_results(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with serving() as server:
        code, first = server.run(whole, recipe)
        assert code == 0, first["said"]
        assert tuple(finished(whole)) == tuple(sorted(STAGES)), "every stage is killed once below"
        resumed: list[str] = []
        said: list[str] = []
        for stage in STAGES:
            trained = stage in TRAINED
            code, second = server.run(cut, recipe, kill_in=stage, within_s=first["seconds"][stage] * 0.9)
            assert code in (-signal.SIGKILL, 0), second["said"]
            said += second["said"]
            done = finished(cut)
            assert list(done) == sorted(STAGES[: len(done)]), "each stage comes after those before it"
            if trained and stage not in done:
                resumed.append(stage)
        code, second = server.run(cut, recipe, kill_in="after gate", within_s=0.05)
        assert code in (-signal.SIGKILL, 0), second["said"]
        code, last = server.run(cut, recipe)
        assert code == 0, last["said"]
    assert tuple(resumed) == TRAINED, "every stage that trains was killed in the middle"
    for stage in resumed:
        assert any(line.startswith(f"{stage}: resumed at epoch") for line in said), said
    assert lasting(cut) == lasting(whole)
    left = [
        path.name for path in (cut / "tiny").rglob("*") if "tmp" in path.name or path.suffix in (".partial", ".broken")
    ]
    assert left == []
    for store in (whole, cut):
        report = json.loads((store / "tiny" / "report.json").read_text())
        chosen = next(row for row in report["subjects"] if row["name"] == report["selection"]["chosen"])
        (released,) = (store / "tiny" / "release").iterdir()
        assert manifest.sha256_file(released) == chosen["sha256"]


# The command itself, with a checkpoint after every step that can afford one instead of every ten seconds.
EAGER = (
    "import sys; from pipeline import train_state; train_state.AT_LEAST_S, train_state.SHARE_OF_TIME = 0.0, 0.5\n"
    "from pipeline.cli.main import main; main(sys.argv[1:])"
)


@contextlib.contextmanager
def training(command: list[str], until: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A real process, and what it said until a line held `until`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", EAGER, *command], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line.rstrip("\n"))
            if until in line:
                break
        yield process, said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_ctrl_c_a_kill_and_a_second_run_in_the_same_store(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.replace("epochs = 3", "epochs = 2000", 1))
    command = ["run", str(recipe), "--out", str(tmp_path)]
    with training(command, until="epoch 2/2000") as (process, _):
        second = cli(*command)
        assert second.code == 1 and re.fullmatch(
            rf"error: {re.escape(str(tmp_path))}/tiny is in use by process {process.pid} on \S+ since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC "
            rf"\({re.escape(shlex.join(['-c', *command]))}\); wait for it or give another --out\n",
            second.err,
        ), second.err
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        last = [line for line in process.stderr.read().splitlines() if line][-2:]
        assert process.wait() == 130
        assert re.fullmatch(r"teacher: interrupted; .*/tiny/teacher-\w{12}\.partial keeps what was done", last[0])
        assert last[1] == "interrupted; run the same command again to resume"
    with training(command, until="resumed at") as (process, said):
        assert said[:2] == ["data: fresh", "teacher: building (interrupted, will be resumed)"]
        assert re.fullmatch(r"teacher: resumed at epoch [1-9]\d*, step \d+", said[2])
        process.kill()
        assert process.wait() == -signal.SIGKILL
    rows = cli("plan", *command[1:], "--json").json
    assert [(row["state"], row["reasons"]) for row in rows[:2]] == [
        ("fresh", []),
        ("missing", ["interrupted, will be resumed"]),
    ]
