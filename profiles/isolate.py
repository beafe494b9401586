"""Call a function in a fresh process, so that its peak memory and its first call are its own.

The parent writes a JSON request to a temporary folder and starts `python -m profiles.isolate FOLDER`; the child
imports the function, calls it with the request and writes a JSON reply. The child watches its standard input, which
closes when the parent dies, so nothing is left behind by a killed run.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiles.errors import ProfileError
from profiles.memory import peak_rss_bytes, rss_bytes


@dataclass(frozen=True, kw_only=True)
class IsolatedResult:
    """What the function returned, and what its process cost.

    `peak_rss_bytes`: most resident memory of the whole process, the interpreter included; `start_rss_bytes`: before
    the function's module was imported. `seconds`: from starting the process to its end. `exit`: its exit status.
    """

    value: Any
    peak_rss_bytes: int
    start_rss_bytes: int
    seconds: float
    exit: int


def call(
    target: str, request: Mapping[str, Any], timeout_s: float = 600.0, env: Mapping[str, str] | None = None
) -> IsolatedResult:
    """Call `target` ("package.module:function") with `request` in a new process; both must be JSON.

    `env` is added to the environment. Raises ProfileError, in one line, when the function raises, when its process
    is killed or when it takes more than `timeout_s` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="edgestill-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps({"target": target, "request": dict(request)}), encoding="utf-8")
        start = time.perf_counter()
        code = _run(folder, target, timeout_s, env)
        seconds = time.perf_counter() - start
        try:
            reply = json.loads((folder / "reply.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ProfileError(f"{target}: {_how_it_died(code, folder / 'output.txt')}") from None
    if "error" in reply:
        raise ProfileError(f"{target}: {reply['error']}")
    return IsolatedResult(
        value=reply["value"],
        peak_rss_bytes=reply["peak_rss_bytes"],
        start_rss_bytes=reply["start_rss_bytes"],
        seconds=seconds,
        exit=code,
    )


def _run(folder: Path, target: str, timeout_s: float, env: Mapping[str, str] | None) -> int:
    # The child must find the same packages, also when this one is run from a checkout.
    search = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if Path(entry or ".").is_dir())
    environment = {**os.environ, **(env or {}), "PYTHONPATH": search}
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "profiles.isolate", str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            return process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ProfileError(
                f"{target}: took longer than {timeout_s:g} s and was stopped; give it more time or a smaller input"
            ) from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _how_it_died(code: int, output: Path) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f"; its last words: {lines[-1].strip()}" if lines else ""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = "; the machine may be out of memory" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}{last}"
    return f"its process ended with exit status {code} and no result{last}"


def _die_with_parent() -> None:
    while os.read(0, 1):  # nothing is ever written: this returns when the parent is gone
        pass
    os._exit(1)


def _child(folder: Path) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    start_rss = rss_bytes()
    order = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        module, _, attribute = order["target"].partition(":")
        value = getattr(importlib.import_module(module), attribute)(order["request"])
        reply = {"value": value, "peak_rss_bytes": peak_rss_bytes(), "start_rss_bytes": start_rss}
        text = json.dumps(reply)
    except Exception as error:
        lines = str(error).strip().splitlines()
        text = json.dumps({"error": f"{type(error).__name__}: {lines[0] if lines else 'no message'}"})
    partial = folder / "reply.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / "reply.json")
    # Some runtimes crash while the interpreter shuts down; the result is safe, so leave at once.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
