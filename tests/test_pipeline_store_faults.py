"""Every way in which a store breaks: kill -9, bit flips, cut files, a second process, a full disk."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from two_stages import Chain, flip_bit

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.stage import Context, Stage
from pipeline.store import Store

ROOT = Path(__file__).parent.parent


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def spoil(name: str) -> Callable[[Path], None]:
    return {
        "bit flip": lambda folder: flip_bit(folder / "teacher.safetensors"),
        "bit flip in a volatile file": lambda folder: flip_bit(folder / "seconds.json"),
        "missing file": lambda folder: (folder / "teacher.safetensors").unlink(),
        "folder for a file": lambda folder: (
            (folder / "teacher.safetensors").unlink(),
            (folder / "teacher.safetensors").mkdir(),
        ),
        "cut manifest": lambda folder: os.truncate(folder / "manifest.json", 100),
        "empty manifest": lambda folder: os.truncate(folder / "manifest.json", 0),
        "no manifest": lambda folder: (folder / "manifest.json").unlink(),
        "another JSON": lambda folder: (folder / "manifest.json").write_text("[]"),
        "altered record": lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace('"resumed": false', '"resumed": true')
        ),
    }[name]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("bit flip", "teacher.safetensors is corrupted (sha256 differs)"),
        ("bit flip in a volatile file", "seconds.json is corrupted (sha256 differs)"),
        ("missing file", "teacher.safetensors is missing"),
        ("folder for a file", "teacher.safetensors cannot be read (Is a directory)"),
        ("cut manifest", "manifest.json is corrupted (not JSON)"),
        ("empty manifest", "manifest.json is corrupted (not JSON)"),
        ("no manifest", "manifest.json is missing"),
        ("another JSON", "manifest.json is corrupted (keys are missing)"),
        ("altered record", "manifest.json is corrupted (sha256 differs)"),
    ],
)
def test_damage_is_said_and_mended(chain: Chain, damage: str, reason: str) -> None:
    chain.run()
    before = manifest.read(chain.folders["teacher"])["digest"]
    spoil(damage)(chain.folders["teacher"])
    assert chain.status() == [("stale", (reason,)), ("unknown", ("teacher has to be built first",))]
    assert chain.run() == ["teacher"], "the student is fresh, since the same bytes came back"
    assert chain.said[0] == f"teacher: building ({reason})"
    assert manifest.read(chain.folders["teacher"])["digest"] == before
    assert chain.status() == [("fresh", ()), ("fresh", ())]
    assert sorted(path.name.rsplit("-", 1)[0] for path in chain.store.folder.iterdir()) == [
        ".lock",
        "student",
        "teacher",
    ]


def test_a_stage_that_fails_keeps_its_partial_folder(chain: Chain) -> None:
    def fail(context: Context) -> None:
        (context.resume_folder / "checkpoint").write_text("step 5")
        raise RuntimeError("boom")

    stage = Stage(name="teacher", version=1, config={}, run=fail)
    with pytest.raises(RuntimeError, match="boom"):
        chain.store.run([stage], chain.said.append)
    (status,) = chain.store.status([stage])
    assert (status.state, status.reasons) == ("missing", ("interrupted, will be resumed",))


def test_ctrl_c_leaves_the_work_and_goes_on_as_an_interrupt(chain: Chain) -> None:
    def work(context: Context) -> None:
        checkpoint = context.resume_folder / "checkpoint"
        if not checkpoint.exists():
            checkpoint.write_text("step 5")
            raise KeyboardInterrupt
        (context.folder / "weights").write_text(f"resumed at {checkpoint.read_text()}")

    stage = Stage(name="teacher", version=1, config={}, run=work)
    with pytest.raises(KeyboardInterrupt):
        chain.store.run([stage], chain.said.append)
    assert re.fullmatch(r"teacher: interrupted; .*/digits/teacher-\w{12}\.partial keeps what was done", chain.said[-1])
    folder = chain.store.run([stage], chain.said.append)["teacher"]
    assert (folder / "weights").read_text() == "resumed at step 5"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "weights"], "the checkpoint is dropped"
    assert manifest.read(folder)["resumed"] is True


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory; lower teacher.train.batch_size, or close other programs"),
        (
            RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. \nmore"),  # from a signal handler
            (
                "a decoding process ended early (DataLoader worker (pid 5) is killed by signal: Killed); "
                "give it more memory or set data.workers lower"
            ),
        ),
    ],
)
def test_what_the_kernel_took_is_said_with_what_to_lower(chain: Chain, error: Exception, said: str) -> None:
    def fail(context: Context) -> None:
        raise error

    with pytest.raises(UserError) as caught:
        chain.store.run([Stage(name="teacher", version=1, config={}, run=fail)], chain.said.append)
    assert str(caught.value) == f"teacher: {said}; finished stages are kept"


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline import store, manifest
from pipeline.stage import Stage

root, moment = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def work(context):
    print("ran", flush=True)
    checkpoint = context.resume_folder / "step"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(done, 4):
        checkpoint.write_text(str(step + 1))
        if moment == f"step {step}" and done <= step:
            die()
    (context.folder / "weights").write_text("w" * 1000)
    if moment == "half a file":
        (context.folder / "weights").write_text("half")
        die()

if moment == "before the manifest":
    store.write_json = lambda *a: die()
if moment == "after the manifest":
    store.shutil.rmtree = lambda *a, **k: die()
if moment == "after the rename":
    rename = Path.rename
    Path.rename = lambda *a: (rename(*a), die())
stage = Stage(name="teacher", version=1, config={}, run=work)
folder = store.Store(root, "digits").run([stage], lambda line: None)["teacher"]
print(manifest.read(folder)["digest"])
"""


def killed(root: Path, moment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(root), moment],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("moment", "runs_again"),
    [
        ("step 0", True),
        ("step 3", True),
        ("half a file", True),
        ("before the manifest", True),
        ("after the manifest", False),
        ("after the rename", False),
    ],
)
def test_kill_9_then_resume_ends_with_the_same_bytes(tmp_path: Path, moment: str, runs_again: bool) -> None:
    whole = killed(tmp_path / "whole", "never").stdout.split()[-1]
    first = killed(tmp_path / "killed", moment)
    assert first.returncode == -signal.SIGKILL, first.stderr
    finished = [path for path in (tmp_path / "killed/digits").glob("teacher-*") if path.suffix != ".partial"]
    assert len(finished) == (moment == "after the rename"), "nothing half-written has a final name"
    second = killed(tmp_path / "killed", "never")
    assert second.returncode == 0, second.stderr
    assert second.stdout.split() == ["ran"] * runs_again + [whole]


HOLDER = """
import sys
from pipeline.store import Store
with Store(sys.argv[1], "digits").lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_is_in(chain: Chain, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "artifacts")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as caught:
            chain.run()
        assert chain.status()[0] == ("missing", ("never built",)), "asking needs no lock"
        holder.kill()
    pattern = (
        rf"{re.escape(str(chain.store.folder))} is in use by process {holder.pid} on \S+ since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(-c .*\); wait for it or give another --out"
    )
    assert re.fullmatch(pattern, str(caught.value)), str(caught.value)
    assert chain.run() == ["teacher", "student"], "the lock ended with its process"


FORKING_HOLDER = """
import os, sys, time
from pipeline.store import Store
with Store(sys.argv[1], "digits").lock():
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # said by the child: then it has let go of the lock
        time.sleep(60)
        os._exit(0)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_worker_that_outlives_its_killed_parent_holds_no_lock(chain: Chain, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKING_HOLDER, str(tmp_path / "artifacts")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        holder.kill()
        holder.wait()
        try:
            assert chain.run() == ["teacher", "student"]
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_lock_is_free_after_an_error_and_may_be_nested(chain: Chain) -> None:
    with pytest.raises(ZeroDivisionError), chain.store.lock(), chain.store.lock():
        raise ZeroDivisionError
    with chain.store.lock():
        assert chain.run() == ["teacher", "student"]


def test_a_store_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file")
    chain = Chain(tmp_path)
    assert chain.status()[0] == ("missing", ("never built",))
    with pytest.raises(UserError) as caught:
        chain.run()
    assert str(caught.value) == (
        f"{tmp_path / 'artifacts' / 'digits'}: cannot be written (Not a directory); mend that or give another --out"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.name != "posix" or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_keeps_finished_stages_and_goes_on_when_there_is_space(small_disk: Path) -> None:
    ballast = small_disk / "ballast"

    def small(context: Context) -> None:
        (context.folder / "weights").write_bytes(b"w" * 1000)

    def large(context: Context) -> None:
        (context.resume_folder / "step").write_text("1")
        ballast.write_bytes(b"b" * (shutil.disk_usage(small_disk).free - 100_000))
        (context.folder / "model.onnx").write_bytes(b"m" * 300_000)

    def quiet(context: Context) -> None:  # a native library that says nothing useful
        try:
            large(context)
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed writing file data/3") from None

    def stages(work: Callable[[Context], None]) -> list[Stage]:
        return [
            Stage(name="teacher", version=1, config={}, run=small),
            Stage(name="export", version=1, config={}, run=work, needs=("teacher",)),
        ]

    store = Store(small_disk, "digits")
    for work in (large, quiet):
        with pytest.raises(UserError) as caught:
            store.run(stages(work), lambda line: None)
        assert re.fullmatch(
            r".*/digits/export-\w{12}\.partial: no space left; "
            r"free some or give another --out; finished stages are kept",
            str(caught.value),
        )
        assert [status.state for status in store.status(stages(work))] == ["fresh", "missing"]
        ballast.unlink()
    said: list[str] = []
    store.run(stages(small), said.append)
    assert said[:2] == ["teacher: fresh", "export: building (interrupted, will be resumed)"]
