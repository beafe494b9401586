"""`edgestill store prune`: what nothing recent needs goes, asked first; what it did not make it never touches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import cli
from two_stages import Chain, flip_bit

from pipeline import manifest
from pipeline.stage import Context, Stage
from pipeline.store import Store

ROOT = Path(__file__).parent.parent


def gate_of(folder: Path, value: int) -> Path:
    """data -> gate, whose report.json is published; `value` changes both."""

    def data(context: Context) -> None:
        (context.folder / "data.json").write_text(str(value) * 100)

    def gate(context: Context) -> None:
        (context.folder / "report.json").write_text(json.dumps({"value": value}))

    stages = [
        Stage(name="data", version=1, config={"value": value}, run=data),
        Stage(name="gate", version=1, config={}, run=gate, needs=("data",)),
    ]
    made = Store(folder, "digits").run(stages, lambda line: None)
    (folder / "digits" / "report.json").write_bytes((made["gate"] / "report.json").read_bytes())
    return made["data"]


def names(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.iterdir() if path.is_dir())


def test_what_the_published_report_needs_stays(tmp_path: Path) -> None:
    old, new = gate_of(tmp_path, 1), gate_of(tmp_path, 2)
    told = cli("store", "prune", tmp_path, "--json").json
    (run,) = told["runs"]
    assert [(row["stage"], row["why"]) for row in run["removable"]] == [("data", "unused"), ("gate", "unused")]
    assert told["removable_bytes"] > 200 and not told["removed"] and old.exists()
    assert cli("store", "prune", tmp_path, "--keep", "2", "--json").json["removable_bytes"] == 0
    asked = cli("store", "prune", tmp_path)
    assert asked.code == 2 and asked.err == f"error: {tmp_path}: nobody to ask here; give --yes to remove 2 folders\n"
    done = cli("store", "prune", tmp_path / "digits", "--yes")
    assert done.code == 0 and "removed " in done.out and done.out.endswith(f"edgestill verify {tmp_path / 'digits'}\n")
    assert not old.exists() and new.exists() and names(tmp_path / "digits") == ["data", "gate"]
    assert "nothing to remove" in cli("store", "prune", tmp_path, "--yes").out


def test_without_a_verdict_the_newest_build_of_each_stage_stays(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.run()
    chain.run(lr=0.2)
    found = cli("store", "prune", tmp_path / "artifacts", "--yes", "--json").json
    assert found["removed"] and found["freed_bytes"] > 0
    assert names(chain.store.folder) == ["student", "teacher"]


def test_foreign_damaged_linked_and_interrupted_folders_are_left_alone(tmp_path: Path) -> None:
    old = gate_of(tmp_path, 1)
    gate_of(tmp_path, 2)
    folder = tmp_path / "digits"
    (old / "notes.txt").write_text("mine")
    (gate,) = [path for path in folder.glob("gate-*") if manifest.sha256_file(path / "report.json") != manifest.sha256_file(folder / "report.json")]  # fmt: skip # noqa: E501
    flip_bit(gate / "manifest.json")
    (folder / "my-photos").mkdir()
    (folder / "data-0123456789ab").mkdir()
    (folder / "table-0123456789ab.partial").mkdir()
    (folder / "teacher-0123456789ab").symlink_to(tmp_path)
    found = cli("store", "prune", tmp_path, "--yes", "--json").json
    assert found["runs"][0]["removable"] == [] and found["freed_bytes"] == 0
    said = " ".join(found["runs"][0]["left"])
    assert "holds notes.txt, which edgestill did not write; left alone" in said
    assert "manifest.json is corrupted" in said and "manifest.json is missing" in said and "--interrupted" in said
    cli("store", "prune", tmp_path, "--yes", "--interrupted", "--json")
    left = {path.name for path in folder.iterdir()}
    assert "table-0123456789ab.partial" not in left
    assert {"my-photos", "data-0123456789ab", "teacher-0123456789ab", old.name, gate.name} <= left


HOLDER = """
import sys
from pipeline.store import Store
with Store(sys.argv[1], "digits").lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_in_use_is_not_touched(tmp_path: Path) -> None:
    old = gate_of(tmp_path, 1)
    gate_of(tmp_path, 2)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        done = cli("store", "prune", tmp_path, "--yes")
        holder.kill()
    assert done.code == 1 and "is in use by process" in done.err and old.exists()


@pytest.mark.parametrize("empty", [True, False])
def test_what_is_no_store_is_said(tmp_path: Path, empty: bool) -> None:
    folder = tmp_path if empty else tmp_path / "none"
    done = cli("store", "prune", folder)
    assert done.code == 1 and done.err.startswith(f"error: {folder}: {'holds no run' if empty else 'no such folder'}; ")
