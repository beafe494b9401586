"""kill -9 or Ctrl-C in the real chain: the resumed run ends with what an uninterrupted one ends with.

`tests/benchmarks/faults.py --only kill` does the same five hundred times; this is one death in every stage.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import Result, cli
from fault_kills import PLACES, killed
from fault_runs import NAME, STAGES, Bench, Server, finished, kill, prepare, serving, whole

TRAINED = ("teacher", "distill", "control")
MIDDLE = 12  # changes of the disk before and after which a stage that trains is past its first and last checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torch cannot be forked safely elsewhere")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as server:
        yield server


def begun_again(store: Path, place: str) -> None:
    """Take away `place` and what comes after it: on a busy machine a kill by time comes late, and they are done."""
    for stage in STAGES[STAGES.index(place) :] if place in STAGES else ():
        for left in (store / NAME).glob(f"{stage}-*"):
            shutil.rmtree(left)


def test_a_run_killed_in_every_stage_ends_with_the_same_results(folder: Path, server: Server) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown by pytest when the test fails
    first = whole(server, folder / "whole")
    assert sorted(name.rpartition("-")[0] for name in finished(folder / "whole")) == sorted(STAGES)
    bench = Bench(folder=folder, server=server, whole=first, random=random.Random(seed), cases=None)
    cut = folder / "cut"
    said: list[str] = []
    for place in PLACES:
        begun_again(cut, place)
        if place in TRAINED:
            before = bench.random.randint(MIDDLE, first.changes[place] - MIDDLE)
            code, lines = server.run(cut, die=[place, before])
            assert code == -signal.SIGKILL, lines
        else:
            # With the fresh processes that measure memory: their parent may die while one of them is at work.
            code, lines, _ = killed(bench, cut, place, cold=place == "profile")
            assert code in (-signal.SIGKILL, 0), lines  # it may have been faster
        said += lines
        assert bench.sound(cut) == "", "nothing half-written may have a final name"
        done = [name.rpartition("-")[0] for name in finished(cut)]
        assert done == sorted(STAGES[: len(done)]), "each stage comes after those before it"
        assert place not in TRAINED or place not in done
    code, lines = server.run(cut)
    assert code == 0, lines
    assert bench.same(cut) == ""
    for stage in TRAINED:
        assert any(re.fullmatch(rf"{stage}: resumed at epoch \d, step \d+", line) for line in said), said


def test_ctrl_c_a_kill_and_a_second_run_in_the_same_store(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    store = folder / "long"
    options = ["--out", str(store), "--set", "teacher.train.epochs=2000"]
    command = ["run", "tiny.toml", *options, "--json"]
    second: list[Result] = []
    pid = server.start(*command)

    def interrupt(line: str) -> None:
        if "epoch 2/2000" in line:
            second.append(cli(*command))
            os.kill(pid, signal.SIGINT)

    code, said = server.wait(interrupt)
    assert second[0].code == 1 and re.fullmatch(
        rf"error: {re.escape(str(store))}/tiny is in use by process {pid} on \S+ since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC "
        rf"\({re.escape(shlex.join(['edgestill', *command]))}\); wait for it or give another --out\n",
        second[0].err,
    ), second[0].err
    assert code == 130, said
    assert re.fullmatch(r"teacher: interrupted; .*/tiny/teacher-\w{12}\.partial keeps what was done", said[-2])
    assert said[-1] == "interrupted; run the same command again to resume"
    pid = server.start(*command)
    code, said = server.wait(lambda line: kill(pid) if "resumed at" in line else None)
    assert code == -signal.SIGKILL
    assert said[:2] == ["data: fresh", "teacher: building (interrupted, will be resumed)"]
    assert re.fullmatch(r"teacher: resumed at epoch [1-9]\d*, step \d+", said[2])
    rows = cli("plan", "tiny.toml", *options, "--json").json
    assert [(row["state"], row["reasons"]) for row in rows[:2]] == [
        ("fresh", []),
        ("missing", ["interrupted, will be resumed"]),
    ]
