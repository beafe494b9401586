"""The faults themselves: each function tries its cases and hands back a tally."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fault_kills import kills
from fault_runs import NAME, STAGES, Bench, Tally, one_line, serving, whole

from pipeline.bundle.verify_run import verify_run
from pipeline.errors import UserError

WIDE = ("--set", "teacher.model=fault_net:build?width=2048")  # some 17 MB of activations a batch, and a gradient each


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(bench: Bench) -> Tally:
    """A disk that grows a little after each failure, and a limit on the size of a file."""
    tally = Tally("full disk", "a tmpfs too small, and a limit on file sizes: one line; with more room, same results")
    wanted = bench.many(40)
    need = sum(path.stat().st_size + 4096 for path in (bench.folder / "whole").rglob("*") if path.is_file())
    while tally.tried < wanted:
        steps = min(20, wanted - tally.tried)
        with small_disk(bench.folder / "disk", 16384) as disk:
            for step in range(steps):
                code, said = bench.server.run(disk / "out")
                if code == 0:
                    break
                trouble = one_line(said) or ("" if "; free some" in said[-1] else said[-1])
                tally.case("no space", trouble if code == 1 else f"exit {code}: {said[-1]}")
                size = 16384 + (step + 1) * need // steps + bench.random.randint(0, 8192)
                subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            code, said = bench.server.run(disk / "out")
            tally.case("room again", f"exit {code}: {said[-1]}" if code else bench.same(disk / "out"))
        store = bench.folder / "limited"
        for limit in (500, 3000, 5000):
            code, said = bench.server.run(store, largest_bytes=limit)
            tally.case("file size", (one_line(said) if code == 1 else f"exit {code}: {said[-1]}") if code else "")
        code, said = bench.server.run(store)
        tally.case("no limit again", f"exit {code}: {said[-1]}" if code else bench.same(store))
        shutil.rmtree(store)
    return tally


def read_only(bench: Bench) -> Tally:
    """A store on a disk that cannot be written: everything that only asks still answers."""
    tally = Tally("read-only", "a store on a read-only disk: run says so in one line, asking commands answer")
    with small_disk(bench.folder / "still", 64 << 20) as disk:
        shutil.copytree(bench.folder / "whole", disk / "out")
        bench.server.run(disk / "out", "--set", "distill.lr=0.02")  # so that there is something to prune
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        run = str(disk / "out" / NAME)
        for words, expected in (
            (["run", "tiny.toml", "--out", str(disk / "out")], 1),
            (["run", "tiny.toml", "--out", str(disk / "new")], 1),
            (["plan", "tiny.toml", "--out", str(disk / "out")], 0),
            (["gate", run], 0),
            (["verify", run], 0),
            (["report", run], 1),
            (["store", "prune", run, "--yes"], 1),
        ):
            bench.server.start(*words)
            code, said = bench.server.wait()
            trouble = "" if code == expected else f"exit {code}: {said[-1:]}"
            tally.case(words[0], trouble or (one_line(said) if expected else ""))
    return tally


def bit_flips(bench: Bench) -> Tally:
    """One bit of one file: `verify` names it, and in some cases the run is repeated and ends as before."""
    tally = Tally("bit flips", "one bit of one stored file: named by verify (all) and mended by a run (every tenth)")
    store = bench.folder / "flips"
    shutil.copytree(bench.folder / "whole", store)
    files = [
        path
        for path in sorted((store / NAME).rglob("*"))
        if path.is_file() and path.name != ".lock" and path.stat().st_size
    ]
    for case in range(bench.many(400)):
        path = files[case % len(files)]
        before = path.read_bytes()
        place, bit = bench.random.randrange(len(before)), bench.random.randrange(8)
        path.write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :])
        relative = path.relative_to(store / NAME)
        page = len(relative.parts) == 1 and path.suffix in (".md", ".html")
        try:
            told = [str(change) for change in verify_run(store / NAME).changes]
        except UserError as error:
            told = [str(error)]
        trouble = "" if page or any(relative.parts[0] in line for line in told) else f"{relative}: not noticed"
        if page or (not trouble and case % 10 == 0):
            code, said = bench.server.run(store)
            trouble = f"exit {code}: {said[-1]}" if code else bench.same(store)
            for left in (store / NAME).glob("profile-*"):  # it holds times, so its new bytes are not the old ones
                if left.name != relative.parts[0]:
                    continue
                shutil.rmtree(store)
                shutil.copytree(bench.folder / "whole", store)
        path.write_bytes(before)
        tally.case("page" if page else relative.parts[0].rpartition("-")[0] or relative.parts[0], trouble)
    return tally


def checkpoints(bench: Bench) -> Tally:
    """One bit of what an interrupted run left behind: it costs work, never the result."""
    tally = Tally("checkpoints", "one bit of an interrupted stage's files: work is lost at most, same results")
    for _ in range(bench.many(30)):
        store = bench.folder / "cut"
        shutil.rmtree(store, ignore_errors=True)
        stage = bench.random.choice(("teacher", "table", "distill", "control"))
        bench.server.run(store, die=[stage, bench.random.randint(12, 40)])
        left = [path for path in (store / NAME).glob("*.partial/**/*") if path.is_file() and path.stat().st_size]
        if not left:
            continue
        path = bench.random.choice(left)
        data = bytearray(path.read_bytes())
        data[bench.random.randrange(len(data))] ^= 1 << bench.random.randrange(8)
        path.write_bytes(data)
        code, said = bench.server.run(store)
        one = one_line(said) if code == 1 else ""
        tally.case(f"{stage}: {path.name}", one or (f"exit {code}: {said[-1]}" if code else bench.same(store)))
    return tally


def two_processes(bench: Bench) -> Tally:
    """A second run while the first is at it: turned away in one line; the first ends as if alone."""
    tally = Tally("two at once", "a second process in one store: one line, the first one ends with the same results")
    with serving(bench.folder) as other:
        for _ in range(bench.many(20)):
            store = bench.folder / "shared"
            shutil.rmtree(store, ignore_errors=True)
            bench.server.start("run", "tiny.toml", "--out", str(store), "--json")
            ended: list[Any] = []
            first = threading.Thread(target=lambda to=ended: to.append(bench.server.wait()))
            first.start()
            time.sleep(bench.random.expovariate(1.0))
            code, said = other.run(store)
            turned_away = code == 1 and "is in use by" in said[-1]
            first.join()
            first_code, first_said = ended[0]
            trouble = one_line(said) if turned_away else ("" if code == 0 else f"exit {code}: {said[-1]}")
            if first_code:
                trouble = trouble or (
                    "" if code == 0 and "is in use by" in first_said[-1] else f"first: {first_said[-1]}"
                )
            tally.case("turned away" if turned_away else "after it", trouble or bench.same(store))
    return tally


def clock(bench: Bench) -> Tally:
    """The wall clock leaps at every look, forwards and backwards; files come from the past and the future."""
    tally = Tally("clock", "a wall clock that leaps at every look, with a kill between: same results")
    for _ in range(bench.many(10)):
        store = bench.folder / "clock"
        shutil.rmtree(store, ignore_errors=True)
        days = bench.random.choice((-3650.0, -1.0, 1.0, 36500.0))
        bench.server.run(store, die=[bench.random.choice(STAGES[1:]), 5], clock_days=days)
        code, said = bench.server.run(store, clock_days=-days)
        trouble = f"exit {code}: {said[-1]}" if code else bench.same(store)
        code, said = bench.server.run(store, clock_days=days)
        stale = [line for line in said if "building" in line]
        tally.case(f"{days:+g} days", trouble or (f"built again: {stale[0]}" if stale else ""))
    return tally


def memory(bench: Bench) -> Tally:
    """A wide teacher in an address space that may grow by little: one line says what to lower; resumed, the same."""
    tally = Tally("memory", "too little memory: one line that says what to lower; with enough, same results")
    bench = dataclasses.replace(bench, whole=whole(bench.server, bench.folder / "wide", *WIDE))
    store = bench.folder / "small"
    for _ in range(bench.many(40)):
        shutil.rmtree(store, ignore_errors=True)
        code, said = bench.server.run(store, *WIDE, memory_mb=bench.random.randint(0, 160))
        trouble = "" if code == 0 else f"exit {code}: {said[-1:]}"
        if code == 1:
            trouble = one_line(said) or ("" if "out of memory; lower " in said[-1] else said[-1])
        begun = [line.partition(":")[0] for line in said if ": building" in line]
        again, lines = bench.server.run(store, *WIDE)
        trouble = trouble or (f"exit {again}: {lines[-1]}" if again else bench.same(store))
        tally.case("enough" if code == 0 else begun[-1] if begun else "start", trouble)
    return tally


CASES: dict[str, Callable[[Bench], Tally]] = {
    "kill": kills,
    "disk": full_disk,
    "read-only": read_only,
    "bits": bit_flips,
    "checkpoints": checkpoints,
    "two": two_processes,
    "clock": clock,
    "memory": memory,
}
