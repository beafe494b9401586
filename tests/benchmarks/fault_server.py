"""A process that has paid for the heavy imports and forks a run of the command line for every line that it reads.

A line is JSON: {"arguments": [...]}, and what is to be done to the run, if anything:
    die: [stage, change]: it is killed before the change-th change that it makes to the disk after the stage began, and
        says "STAGE: changed N" of every stage if it comes to its end
    cold: true: memory is measured in fresh processes, as in a user's run
    memory_mb: N: its address space may grow by so much; largest_bytes: N: a file may
    clock_days: D: every look at the wall clock is so much later than the one before
    ranks: N: torchrun's agent starts so many processes, each of which says "rank R is PID"
Answers "pid N", what the run says, and "exit CODE".
"""

import contextlib
import datetime
import functools
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
import types
import uuid

import onnx  # noqa: F401
import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import scipy.stats  # noqa: F401
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.onnx._internal.exporter._registration import ONNXRegistry

import exporters.parity
import exporters.quantize_onnx
import exporters.run_torch
import exporters.to_onnx  # noqa: F401
import profiles.flops  # noqa: F401
from pipeline import chain, store  # noqa: F401
from pipeline.cli import torchrun
from pipeline.cli.main import main
from pipeline.stages import profile
from pipeline.teacher_table import build
from pipeline.training import state as train_state
from pipeline.training import train  # noqa: F401

CHANGES = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

train_state.AT_LEAST_S, train_state.SHARE_OF_TIME = 0.0, math.inf  # a checkpoint after every step
build.MARGIN_BYTES = 0  # a table leaves 64 MB free; here a disk is smaller than that
# Fresh processes that measure memory write nothing and cost ten seconds a run; a command may ask for them.
COLD = profile.cold
profile.cold = lambda *_: {"peak_memory_bytes": None, "first_ms": None, "missing": {"peak_memory_bytes": "left out"}}

# The exporter reads the source of every operator that it knows at each export, which is most of a tiny run's time.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


CHANGED: dict[str, int] = {}  # stage -> changes of the disk since it began


def die_before(stage: str, change: int) -> None:
    """Count what each stage changes on the disk; the `change`-th since `stage` began is never made."""
    work = store.Store._work
    left: list[int] = []  # one number, once the stage has begun

    def counting(self, one, *arguments, **named):
        CHANGED[one.name] = 0
        left.extend([change] if one.name == stage else [])
        return work(self, one, *arguments, **named)

    def hook(event: str, arguments: tuple) -> None:
        if not CHANGED or event not in CHANGES:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        CHANGED[next(reversed(CHANGED))] += 1
        if left:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    store.Store._work = counting
    sys.addaudithook(hook)


def move_clock(days: float) -> None:
    """Every look at the wall clock is `days` later, or earlier, than the one before; steady clocks stay as they are."""
    seconds = [time.time()]

    def now() -> float:
        seconds[0] += days * 86400
        return seconds[0]

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":  # type: ignore[override]
            return cls.fromtimestamp(now() % 4e9, tz)

    time.time = now
    datetime.datetime = Clock  # type: ignore[misc]


def child(command: dict) -> int:
    sys.argv = ["edgestill", *command["arguments"]]
    if command.get("die"):
        die_before(*command["die"])
    if command.get("cold"):
        profile.cold = COLD
    if command.get("clock_days"):
        move_clock(command["clock_days"])
    if command.get("memory_mb"):
        with open("/proc/self/statm") as file:  # noqa: PTH123
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (command["memory_mb"] << 20),) * 2)
    if command.get("largest_bytes"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["largest_bytes"],) * 2)
    try:
        if command.get("ranks"):
            return together(command["ranks"])
        main(command["arguments"])
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        for stage, changes in CHANGED.items():
            print(f"{stage}: changed {changes}", file=sys.stderr)
    return 99


def together(ranks: int) -> int:
    """As `torchrun --standalone`, but the processes are forks of this one, which has its imports behind it."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        max_restarts=0,
        start_method="fork",
    )
    try:
        elastic_launch(config, one_of_them)()
    except ChildFailedError:
        return 1
    return 0


class Done(BaseException):
    """A forked process of the agent has to return; one that torchrun starts by its command ends at once."""


def one_of_them() -> None:
    def leave(code: int) -> None:
        if code == 0:
            raise Done
        os._exit(code)

    print(f"rank {os.environ['RANK']} is {os.getpid()}", file=sys.stderr, flush=True)
    torchrun.os = types.SimpleNamespace(**{**vars(os), "_exit": leave})  # type: ignore[assignment]
    with contextlib.suppress(Done):
        torchrun.main()


def warm_up() -> None:
    """A whole run in this process: what torch imports at the first training and export is paid for once."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        stack.enter_context(contextlib.suppress(SystemExit))
        main(["run", "tiny.toml", "--out", folder, "--json"])


def serve() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    torch.set_num_threads(1)
    warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            print("pid", os.getpid(), flush=True)
            os.dup2(1, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = 99
            try:
                code = child(command)
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(f"\nexit {os.waitstatus_to_exitcode(status)}", flush=True)  # it may have died within a line


if __name__ == "__main__":
    serve()
