"""`edgestill sweep` on real networks: the terminal's table, JSON, exit codes, and what it leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Result, cli

from pipeline.stages import profile
from pipeline.sweeps.table import KEYS

SMALL = (
    "--smoke",
    *("--set", "teacher.model=mlperf-resnet8", "--set", "teacher.train.epochs=1", "--set", "distill.epochs=1"),
    *("--set", "profile.runtimes=onnxruntime", "--set", "profile.min_seconds=0.01", "--set", "profile.blocks=2"),
    *("--set", "quantize=false", "--set", 'export.0.precisions=["fp32"]'),
)
GRID = ("--grid", "distill.lr=0.1,1e30", "--repeats", "2")  # the second one diverges


class Done:
    """One real sweep, shared by the tests of this file."""

    def __init__(self, out: Path) -> None:
        self.arguments = ("sweep", "digits", *SMALL, *GRID, "--out", out)
        self.result: Result = cli(*self.arguments)
        self.store = out / "digits-smoke"
        self.folder = self.store / "sweep"

    @property
    def table(self) -> dict[str, Any]:
        return json.loads((self.folder / "sweep.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    nothing = {"peak_memory_bytes": None, "first_ms": None, "missing": {"peak_memory_bytes": "not asked for"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "cold", lambda *_: nothing)  # fresh processes for figures that are not looked at here
        yield Done(tmp_path_factory.mktemp("sweep"))


def test_a_failed_point_gives_exit_code_1_and_the_others_their_figures(done: Done) -> None:
    assert done.result.code == 1, done.result.err
    good, bad = done.table["points"]
    assert (good["status"], bad["status"]) == ("done", "failed")
    assert bad["why"].startswith("distill: the loss is") and bad["verdict"] is None
    assert good["verdict"] in ("released", "refused", "undecided")
    assert [seed["seed"] for seed in good["seeds"]] == [0, 1] and good["n"] == 719
    assert all(0 < seed["student"] < 1 and 0 < seed["control"] < 1 for seed in good["seeds"])
    assert good["accuracy"]["ci95"][0] < good["accuracy"]["mean"] < good["accuracy"]["ci95"][1]
    assert good["compression"]["params"] > 1 and good["compression"]["bytes"] > 1
    assert 0 < good["teacher_share"] < 1 and good["s_per_epoch"] > 0 and good["peak_memory_bytes"] > 1e8
    assert {"data", "teacher", "distill", "distill-seed1", "control-seed1", "gate"} <= set(good["stages"])


def test_the_terminal_shows_the_table_the_failure_and_where_the_pages_lie(done: Done) -> None:
    lines = done.result.out.splitlines()
    columns = "point accuracy gain params MACs size s/epoch time teacher peak RAM verdict"
    assert " ".join(lines[0].split()) == columns
    assert lines[1].startswith("lr=0.1 \u2605") and " \u00b1 " in lines[1] and "\u00d7" in lines[1]
    assert " to " in lines[2], "the interval stands below"
    assert any(line.startswith("lr=1e30: failed: distill: the loss is") for line in lines)
    assert f"table: {done.folder / 'sweep.html'}" in lines
    assert lines[-1].startswith("next: edgestill ")
    assert "[1/2 lr=0.1] teacher: building (never built)" in done.result.err.splitlines()
    assert "[2/2 lr=1e30] teacher: fresh" in done.result.err.splitlines()


def test_each_point_has_its_pages_and_nothing_is_released(done: Done) -> None:
    found = sorted(path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*") if path.is_file())
    assert found == [*(f"lr=0.1/report.{kind}" for kind in ("html", "json", "md")), "sweep.html", "sweep.json"]
    assert not (done.store / "release").exists() and not (done.store / "report.json").exists()
    assert cli("gate", done.folder / "lr=0.1").code in (0, 3, 4)


def test_the_same_command_trains_nothing_again_and_prints_json(done: Done) -> None:
    folders = {path.name: path.stat().st_mtime_ns for path in done.store.glob("*-*")}
    again = cli(*done.arguments, "--only", "lr=0.1", "--json")
    assert again.code == 0
    assert set(again.json) == set(KEYS) and [row["name"] for row in again.json["points"]] == ["lr=0.1"]
    assert {path.name: path.stat().st_mtime_ns for path in done.store.glob("*-*")} == folders
    assert " building " not in again.err and again.err.count(": fresh") == len(again.json["points"][0]["stages"])


def test_run_finds_what_a_sweep_has_trained(done: Done) -> None:
    command = [*SMALL, "--set", "distill.lr=0.1", "--set", "distill.repeats=2"]
    plan = cli("plan", "digits", *command, "--out", done.store.parent, "--json")
    assert {row["state"] for row in plan.json} == {"fresh"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--grid", "distill.epoch=1,2"), "distill: unknown key 'epoch'; did you mean 'epochs'?"),
        (("--grid", "distill.epochs="), "--grid distill.epochs: no value; write its values, such as a,b,c"),
        (("--repeats", "many"), "'many' is not a valid integer"),
        (("--engine", "spark"), "'spark' is not one of 'local', 'ray'"),
        ((), "nothing to vary; give --grid key=a,b,c or --repeats N, or write a [sweep] table"),
    ],
)
def test_a_bad_command_line_is_one_line_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    result = cli("sweep", "digits", *arguments, "--out", tmp_path / "out")
    assert result.code == 2 and result.out == ""
    assert line in result.err and len(result.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_help_says_that_a_sweep_does_not_gate() -> None:
    text = " ".join(cli("sweep", "--help").out.split())
    assert "A sweep compares and does not gate: it exits with 0 when all points ran" in text
