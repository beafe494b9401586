"""Real fresh processes: results, peaks, deaths, time limits, and nothing left behind."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from profiles import isolate
from profiles.errors import ProfileError
from profiles.memory import peak_rss_bytes, rss_bytes

MODULE = """
import os, signal, sys, time

def echo(request):
    print("noise that must not reach the reply")
    return {"got": request, "pid": os.getpid()}

def allocate(request):
    block = bytearray(request["bytes"])
    block[::4096] = b"x" * len(block[::4096])
    del block
    return None

def fail(request):
    raise ValueError("first line\\nsecond line")

def silent(request):
    raise RuntimeError

def die(request):
    os.kill(os.getpid(), getattr(signal, request["signal"]))

def leave(request):
    sys.stderr.write("cannot open display\\n")
    sys.stderr.flush()
    os._exit(3)

def sleep(request):
    with open(request["pid"], "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)

def not_json(request):
    return object()

def environment(request):
    return os.environ.get(request["name"])
"""


@pytest.fixture
def probe(tmp_path, monkeypatch):
    (tmp_path / "probe_here.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "probe_here"


def test_value_comes_back_from_another_process(probe):
    result = isolate.call(f"{probe}:echo", {"a": [1, 2.5, None]})
    assert result.value["got"] == {"a": [1, 2.5, None]}
    assert result.value["pid"] != os.getpid()
    assert result.exit == 0
    assert result.seconds > 0


def test_peak_has_what_was_freed_and_nothing_of_the_parent(probe):
    ballast = bytearray(200_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    small = isolate.call(f"{probe}:allocate", {"bytes": 1})
    large = isolate.call(f"{probe}:allocate", {"bytes": 100_000_000})
    assert small.start_rss_bytes <= small.peak_rss_bytes < 100_000_000
    assert 95_000_000 < large.peak_rss_bytes - small.peak_rss_bytes < 110_000_000
    assert len(ballast) == 200_000_000


def test_environment_is_added_to(probe):
    assert isolate.call(f"{probe}:environment", {"name": "PROBE_X"}, env={"PROBE_X": "7"}).value == "7"
    assert isolate.call(f"{probe}:environment", {"name": "PATH"}).value == os.environ["PATH"]


@pytest.mark.parametrize(
    ("function", "request_", "text"),
    [
        ("fail", {}, "ValueError: first line"),
        ("silent", {}, "RuntimeError: no message"),
        ("missing", {}, "AttributeError: module 'probe_here' has no attribute 'missing'"),
        ("not_json", {}, "TypeError: Object of type object is not JSON serializable"),
        (
            "die",
            {"signal": "SIGKILL"},
            "its process was killed by SIGKILL; the machine may be out of memory",
        ),
        ("leave", {}, "its process ended with exit status 3 and no result; its last words: cannot open display"),
    ],
)
def test_failures_are_one_line(probe, function, request_, text):
    with pytest.raises(ProfileError) as caught:
        isolate.call(f"{probe}:{function}", request_)
    assert str(caught.value) == f"probe_here:{function}: {text}"


def test_time_limit_stops_the_process(probe, tmp_path):
    with pytest.raises(ProfileError) as caught:
        isolate.call(f"{probe}:sleep", {"pid": str(tmp_path / "pid")}, timeout_s=1.5)
    assert str(caught.value) == (
        "probe_here:sleep: took longer than 1.5 s and was stopped; give it more time or a smaller input"
    )
    assert _gone(int((tmp_path / "pid").read_text()))


def test_child_ends_when_its_parent_is_killed(probe, tmp_path):
    code = f"""
        import sys
        sys.path[:0] = {sys.path!r}
        from profiles import isolate
        isolate.call("probe_here:sleep", {{"pid": {str(tmp_path / "pid")!r}}})
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    pid = tmp_path / "pid"
    _wait(lambda: pid.exists() and pid.read_text())
    parent.kill()
    parent.wait()
    _wait(lambda: _gone(int(pid.read_text())))


def test_own_peak_is_at_least_what_is_held():
    assert 0 < rss_bytes() <= peak_rss_bytes() * 1.01


def _gone(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def _wait(condition):
    deadline = time.monotonic() + 120  # a busy machine is slow
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
