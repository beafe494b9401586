"""The command line itself: help, unknown words, one line an error, exit codes, nothing heavy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import cli

from exporters import ExportError
from pipeline.cli import main as main_module
from pipeline.cli.main import COMMANDS, explain
from pipeline.errors import RecipeError, UserError
from profiles.errors import ProfileError


def test_help_names_every_command_and_the_exit_codes() -> None:
    result = cli("--help")
    assert result.code == 0 and result.err == ""
    for name in COMMANDS:
        assert f"\n  {name} " in result.out
    assert "3 refused, 4 undecided" in " ".join(result.out.split())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    result = cli(name, "--help")
    assert result.code == 0 and result.out.startswith(f"Usage: edgestill {name} ")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["rum"], "error: no such command 'rum'; did you mean 'run'? (see 'edgestill --help')"),
        (["run"], "error: missing argument 'RECIPE' (see 'edgestill run --help')"),
        (["run", "digits", "--smok"], "error: no such option '--smok'; did you mean '--smoke'? (see"),
        (["plan", "digist"], "error: no such recipe 'digist'; did you mean 'digits'?"),
        (["plan", "digits", "--set", "distill.epoch=3"],
         "error: --set: distill: unknown key 'epoch'; did you mean 'epochs'?"),
        (["run", "digits", "--set", "teacher.model=resnet"], "error: --set: teacher.model: unknown model 'resnet'"),
        (["list", "recipe"], "error: list: nothing is called 'recipe'; did you mean 'recipes'?"),
        (["list", "models", "--schema"],
         "error: --schema: only recipes have one; write 'edgestill list recipes --schema'"),
        (["gate", "no/report.json", "--rules", "no.toml"], "error: no/report.json: no such report; make one with"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line(args: list[str], line: str) -> None:
    result = cli(*args)
    assert result.err.startswith(line) and result.err.count("\n") == 1 and result.out == ""
    assert result.code == (1 if args[0] == "gate" else 2)


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (UserError("data: bad"), "data: bad", 1),
        (RecipeError("x: bad"), "x: bad", 2),
        (ExportError("m.onnx: bad"), "m.onnx: bad", 1),
        (ProfileError("a: bad"), "a: bad", 1),
        (ModuleNotFoundError("No module named 'torch'", name="torch"),
         "torch is not installed; pip install 'edgestill[train]'", 1),
        (ModuleNotFoundError("No module named 'openvino'", name="openvino.runtime"),
         "openvino is not installed; pip install 'edgestill[openvino]'", 1),
        (PermissionError(13, "Permission denied", "a/b"),
         "a/b: Permission denied; look at the path, its permissions and the disk", 1),
        (ZeroDivisionError("division by zero\nsecond line"),
         "ZeroDivisionError: division by zero (a fault of edgestill; --debug shows the traceback)", 1),
    ],
)  # fmt: skip
def test_every_error_becomes_one_line(error: Exception, line: str, code: int) -> None:
    assert explain(error) == (line, code)


def test_a_traceback_is_shown_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(main_module.group, "main", broken)
    assert "Traceback" not in cli("list").err
    shown = cli("list", "--debug")
    assert "Traceback" in shown.err and shown.err.splitlines()[-1].startswith("error: ZeroDivisionError")


def edgestill(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        cwd=cwd,
        timeout=120,
    )


def test_the_real_process_has_the_same_codes(tmp_path: Path) -> None:
    assert edgestill("--version").stdout.startswith("edgestill")
    refused = edgestill("plan", "nothing", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "") and refused.stderr.startswith("error: no such recipe")


def test_interrupting_says_how_to_resume(tmp_path: Path) -> None:
    code = (
        "import sys, pipeline.cli.main as m\n"
        "def wait(*a, **k):\n    import time; print('ready', flush=True); time.sleep(300)\n"
        "m.group.main = wait\nm.main(['run', 'digits'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "interrupted; run the same command again to resume\n")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m pipeline list --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("{", "")
