"""The command under torchrun: two real processes, one of which may be killed, and the chain that goes on afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import chain
from pipeline.store import Store

ROOT = Path(__file__).parent.parent
TIMES = {"seconds", "images_per_s", "data_wait"}
NETS = """
from torch import nn
def plain(num_classes, in_channels=1):
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""
RECIPE = """
name = "tiny"
data = { name = "digits", validation = 0.1, test = 0.4 }
student = { model = "torchrun_nets:plain" }
export = [{ precisions = ["fp32"] }]
quantize = false
profile = { runtimes = ["onnxruntime"], min_seconds = 0.05 }
gate = [{ metric = "size_bytes", max = 1e9 }]
[teacher]
model = "torchrun_nets:plain"
check = "warn"
train = { epochs = 2, batch_size = 64, lr = 0.05, augment = { flip = true } }
[distill]
epochs = 3
batch_size = 64
lr = 0.05
augment = { flip = true, pad_crop = 1 }
teacher_outputs = "table"
losses = [
    { loss = "cross_entropy", weight = 0.5 },
    { loss = "kd", weight = 0.5 },
    { loss = "dist", weight = 0.5 },
    { loss = "rkd", weight = 0.1, student = "5", teacher = "5" },
]
"""
STEPS = 15  # an epoch: 969 images in batches of 64
# The chain as far as the student, with checkpoints at short intervals; a rank may kill itself, or fail, before a step.
LAUNCH = """
import os, runpy, signal
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
from pipeline import chain
from pipeline.training import state as train_state
from pipeline.store import Store
train_state.AT_LEAST_S, train_state.SHARE_OF_TIME = 0.0, 0.5
def run(recipe, *, out, overrides, smoke, say=None):
    found = chain.as_recipe(recipe, overrides, smoke=smoke)
    Store(out, found.name).run(chain.stages(found), chain.to_stderr, only=["distill"])
    return {"verdict": "released"}
chain.run = run
rank, how, step = os.environ.get("TROUBLE", "-1 none 0").split()
if rank == os.environ["RANK"]:
    from pipeline.distillers.offline import Offline
    forward, left = Offline.forward, int(step)
    def troubled(self, *arguments, **named):
        global left
        left -= 1
        if left == 0:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "interrupt":
                os.kill(os.getppid(), signal.SIGINT)
            if how == "fail":
                raise OSError("the disk has gone")
        return forward(self, *arguments, **named)
    Offline.forward = troubled
runpy.run_module("pipeline", run_name="__main__")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "torchrun_nets.py").write_text(NETS)
    (tmp_path / "launch.py").write_text(LAUNCH)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return tmp_path


def torchrun(folder: Path, *arguments: str, trouble: str = "-1 none 0") -> tuple[int, str]:
    """Exit code and all that two processes said."""
    paths = os.pathsep.join((str(ROOT), str(folder)))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TROUBLE": trouble},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def curve(store: Path, stage: str) -> list[dict[str, Any]]:
    (found,) = [path for path in store.glob(f"{stage}-*") if re.fullmatch(rf"{stage}-[0-9a-f]{{12}}", path.name)]
    return json.loads((found / "training.json").read_text())["curve"]


def assert_close(got: list[dict[str, Any]], wanted: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    for row, other in zip(got, wanted, strict=True):
        assert row["terms"] == pytest.approx(other["terms"], abs=tolerance, rel=tolerance)
        for name in ("lr", "train_loss", "val_accuracy"):
            assert row[name] == pytest.approx(other[name], abs=tolerance, rel=tolerance)


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


def test_a_rank_is_killed_and_the_run_goes_on_to_the_curve_of_one_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("launch.py", "run", "tiny.toml", "--json", "--out", "two")
    code, said = torchrun(folder, *command, trouble=f"1 kill {3 * STEPS + 8}")  # in the second epoch of the student
    assert code == 1, said
    (line,) = errors(said)
    assert re.fullmatch(r"error: .*another process ended early.*; run the same command again to resume", line), line
    assert said.count("distill: epoch 1/3") == 1 and "distill: epoch 2/3" not in said
    code, said = torchrun(folder, *command)
    assert code == 0, said
    assert "distill: resumed at epoch" in said and not errors(said)

    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    recipe = chain.as_recipe("tiny.toml", (), smoke=False)
    Store("one", recipe.name).run(chain.stages(recipe), lambda line: None, only=["distill"])
    for stage in ("teacher", "distill"):
        assert_close(curve(folder / "two" / "tiny", stage), curve(folder / "one" / "tiny", stage))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "wanted"),
    [
        (f"1 fail {STEPS}", r"error: rank 1 on \S+: OSError: the disk has gone; run the same command again to resume"),
        (f"0 kill {STEPS}", r"error: .*another process ended early.*; run the same command again to resume"),
        (f"0 fail {STEPS}", r"error: .*the disk has gone.*"),
        (f"0 interrupt {STEPS}", r"interrupted; run the same command again to resume"),
    ],
)
def test_any_other_end_is_one_line_too(folder: Path, trouble: str, wanted: str) -> None:
    code, said = torchrun(folder, "launch.py", "run", "tiny.toml", "--json", "--out", "two", trouble=trouble)
    assert code == 1, said
    assert sum(re.fullmatch(wanted, line) is not None for line in said.splitlines()) == 1, said
    assert len(errors(said)) == (0 if "interrupted" in wanted else 1), said
    code, said = torchrun(folder, "launch.py", "run", "tiny.toml", "--json", "--out", "two")
    assert code == 0, said


@pytest.mark.slow
def test_the_whole_chain_under_torchrun_is_that_of_one_process(folder: Path) -> None:
    code, said = torchrun(folder, "-m", "pipeline", "run", "tiny.toml", "--out", "two")
    assert code == 0, said
    assert said.count("gate: done") == said.count("report: ") == 1, "only rank 0 speaks"
    assert "teacher: 2 processes with 32 images each of a batch of 64" in said
    assert "Warning" not in said, said
    code, plan = torchrun(folder, "-m", "pipeline", "plan", "tiny.toml", "--out", "two")
    assert code == 0 and plan.count("teacher-check") == 1, plan
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", "tiny.toml", "--out", "one"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for stage in ("teacher", "distill", "control"):
        assert_close(curve(folder / "two" / "tiny", stage), curve(folder / "one" / "tiny", stage))
    reports = [json.loads((folder / out / "tiny" / "report.json").read_text()) for out in ("one", "two")]
    accuracies = [{row["name"]: row["accuracy"]["value"] for row in report["subjects"]} for report in reports]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.003)
    assert reports[1]["environment"]["variables"]["WORLD_SIZE"] == "2"


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_before_training(folder: Path) -> None:
    code, said = torchrun(folder, "-m", "pipeline", "run", "tiny.toml", "--set", "distill.batch_size=65")
    assert code == 1
    (line,) = errors(said)
    assert line == (
        "error: distill.batch_size = 65 does not divide by 2 processes; set it to 64 or 66, or start another number of "
        "processes"
    )
    assert "exitcode  : 2" in said and "teacher: epoch" not in said


@pytest.mark.slow
def test_pictures_are_learned_by_two_processes_as_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "paper003-super-resolution"
    code, said = torchrun(folder, "launch.py", "run", name, "--smoke", "--json", "--out", "two")
    assert code == 0, said
    monkeypatch.chdir(folder)
    recipe = chain.as_recipe(name, (), smoke=True)
    Store("one", recipe.name).run(chain.stages(recipe), lambda line: None, only=["distill"])
    for stage in ("teacher", "distill"):
        assert_close(curve(folder / "two" / recipe.name, stage), curve(folder / "one" / recipe.name, stage), 1e-3)
