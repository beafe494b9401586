"""Files are whole or absent, and a bad disk is one line."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.atomic import (
    disk_error,
    format_bytes,
    no_space,
    remove_temporary,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from pipeline.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writers_replace_the_file_and_make_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.bin"
    write_bytes(path, b"\x00\r\n\xff")
    assert path.read_bytes() == b"\x00\r\n\xff"
    write_text(path, "ä\r\n")
    assert path.read_bytes() == "ä\r\n".encode()
    write_json(path, {"b": 1, "a": [0.1, None, "ä"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 1, "a": [0.1, None, "ä"]}
    assert list(json.loads(path.read_text(encoding="utf-8"))) == ["b", "a"], "keys keep their order"
    assert names(path.parent) == ["x.bin"]


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"1")
    (tmp_path / "y").write_bytes(b"1")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_not_json_and_keeps_the_old_file(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"new": value})
    assert json.loads((tmp_path / "x.json").read_text()) == {"old": 1}
    assert names(tmp_path) == ["x.json"]


def test_a_failing_block_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x.npz", b"old")
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "x.npz") as temporary:
        assert temporary.suffix == ".npz", "numpy.savez appends .npz to other names"
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "x.npz").read_bytes() == b"old"
    assert names(tmp_path) == ["x.npz"]


def test_an_error_about_another_file_is_not_translated(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"input\.bin"), writing(tmp_path / "out.bin") as temporary:
        temporary.write_bytes((tmp_path / "input.bin").read_bytes())


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    path = tmp_path / "out" / "x.json"
    with pytest.raises(UserError) as caught:
        write_json(path, {})
    assert str(caught.value) == f"{path}: cannot be written (File exists); mend that or give another --out"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError) as caught:
        write_json(tmp_path / "x.json", {})
    assert str(caught.value) == (
        f"{tmp_path / 'x.json'}: cannot be written (Permission denied); mend that or give another --out"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the kernel's full device")
def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with pytest.raises(UserError) as caught, writing(path, needed_bytes=12_300_000):
        Path("/dev/full").write_bytes(b"x")
    assert str(caught.value) == (
        f"{path}: no space left (needed about 12.3 MB); free some or give another --out; finished stages are kept"
    )
    assert names(tmp_path) == []


def test_quota_and_wrapped_errors_count_as_a_full_disk() -> None:
    assert str(disk_error(OSError(errno.EDQUOT, "Disk quota exceeded"), "x")) == (
        "x: no space left; free some or give another --out; finished stages are kept"
    )
    wrapped = RuntimeError("writer failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert no_space(wrapped)
    assert no_space(RuntimeError("SafetensorError: I/O: No space left on device (os error 28)"))
    assert not no_space(OSError(errno.EACCES, "Permission denied"))
    assert not no_space(None)


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_bytes(path, b"old" * 1000)
    code = (
        "import os, signal, sys\nfrom pipeline.atomic import writing\n"
        "with writing(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=Path(__file__).parent.parent, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old" * 1000
    assert len(names(tmp_path)) == 2
    remove_temporary(tmp_path)
    assert names(tmp_path) == ["x.bin"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_999, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (5_000_000_000_000_000, "5000.0 TB"),
    ],
)
def test_bytes_read_as_people_say_them(count: int, text: str) -> None:
    assert format_bytes(count) == text
