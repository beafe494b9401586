"""One run at a time in a store: an advisory lock of the kernel, which ends with the process however that dies."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.atomic import disk_errors
from pipeline.errors import UserError

FILE = ".lock"
_held: set[int] = set()


def _close_in_child() -> None:
    # A worker process shares the lock with its parent; it must not keep it alive when the parent is killed.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`. Raises `UserError` that names the process which holds it, if another one does."""
    import fcntl

    path = folder / FILE
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by {_holder(descriptor)}; wait for it or give another --out") from None
        except OSError as error:
            raise UserError(
                f"{path}: this file system has no locks ({error.strerror}); give an --out on a local disk"
            ) from error
        _held.add(descriptor)
        # Who we are is a courtesy: a full disk must not keep fresh stages from being read.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        # The file stays after us: removing it would let a third process lock a new one beside the second's.
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _myself() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]]),
    }


def _holder(descriptor: int) -> str:
    try:
        who = json.loads(os.pread(descriptor, 1 << 16, 0))
        return f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
