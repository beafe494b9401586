"""What happens around a run: its images change, a process that helps it dies, a sweep is cut short."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fault_runs import NAME, RECIPE, STAGES, TIMED, Bench, Tally, differing, finished, one_line, whole
from PIL import Image

from pipeline import chain
from pipeline.training.teamwork import RESUME

PHOTOS = "photos.toml"
READING = STAGES[1:10]  # stages that look at the images
TOGETHER = ("teacher", "distill", "control")  # stages in which all ranks take part
STREAMED = ("--set", "data.memory_limit_mb=0", "--set", "data.workers=2")
NOTICED = ("changed while this run was going on", "it could be read when this run began", "cannot be used; mend")
TORCHRUN = re.compile(r"[EWI]\d{4} \d\d:")  # what its agent logs, tracebacks of its own included
CHANGES = ("other pixels", "cut short", "removed", "added", "moved")


def photos(bench: Bench, *words: str) -> Bench:
    """The tiny run on a folder of PNG files: 240 + 160 images of 8 x 8 in four classes."""
    if not (bench.folder / PHOTOS).exists():
        with np.load(bench.folder / "x.npz") as arrays:
            for part in ("train", "test"):
                for place, (image, label) in enumerate(zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)):
                    path = bench.folder / "photos" / part / f"class{label}" / f"{place:03}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image).convert("RGB").save(path)
        source = 'name = "imagefolder", root = "{folder}", image_size = 8'.format(folder=bench.folder / "photos")
        (bench.folder / PHOTOS).write_text(RECIPE.replace('name = "arrays", root = "x.npz"', source))
    store = Path(tempfile.mkdtemp(dir=bench.folder))
    return dataclasses.replace(bench, whole=whole(bench.server, store, *words, recipe=PHOTOS))


def somewhere(bench: Bench, stages: tuple[str, ...], act: Callable[[str], None]) -> Callable[[str], None]:
    """A listener that does `act` once, at a random moment of a random stage; it is told the stage."""
    stage = bench.random.choice(stages)
    begun: list[str] = []

    def on_line(line: str) -> None:
        if line.startswith(f"{stage}: building") and not begun:
            begun.append(stage)
            threading.Timer(bench.random.uniform(0, bench.whole.seconds[stage]), act, [stage]).start()

    return on_line


def data_changes(bench: Bench) -> Tally:
    """One image is changed, cut, removed, added or moved to another class while a run reads the folder."""
    what = "an image of the data folder changes during the run: said in one line, or without effect; put back, same"
    tally = Tally("data folder", what)
    ways = {"in memory": ((), photos(bench)), "streamed": (STREAMED, photos(bench, *STREAMED))}
    before, folder = bench.folder / "before", bench.folder / "photos"
    shutil.copytree(folder, before)
    for case in range(bench.many(40)):
        store, kind = bench.folder / "changing", CHANGES[case % len(CHANGES)]
        way = list(ways)[case // len(CHANGES) % 2]
        words, ours = ways[way]
        shutil.rmtree(store, ignore_errors=True)
        where: list[str] = []

        def act(stage: str, kind: str = kind, where: list[str] = where) -> None:
            change(folder, kind, bench)
            where.append(stage)

        code, said = bench.server.run(store, *words, recipe=PHOTOS, on_line=somewhere(ours, READING, act))
        while not where:  # the run was faster than the change
            time.sleep(0.01)
        if code == 1:
            trouble = "" if "cannot be used" in said[-2] else one_line(said)  # that has a line for each file
            trouble = trouble or ("" if any(words in line for words in NOTICED for line in said[-2:]) else said[-1])
        else:  # too late for this run, or in images that it had read already: the next look must notice
            trouble = ours.same(store) if code == 0 else f"exit {code}: {said[-1:]}"
            state = chain.plan(bench.folder / PHOTOS, out=store)[0].state
            trouble = trouble or ("" if state == "stale" else f"plan: data is {state}")
        shutil.rmtree(folder)
        shutil.copytree(before, folder)  # with its times
        if not trouble:
            code, said = bench.server.run(store, *words, recipe=PHOTOS)
            trouble = f"exit {code}: {said[-1]}" if code else ours.same(store)
        tally.case(f"{kind}, {way}, {'noticed' if code == 1 else 'too late'}", trouble)
    return tally


def change(folder: Path, kind: str, bench: Bench) -> None:
    files = sorted(folder.rglob("*.png"))
    path, other = bench.random.sample(files, 2)
    if kind == "other pixels":
        path.write_bytes(bytes_unlike(path, files))
    elif kind == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "removed":
        path.unlink()
    elif kind == "added":
        shutil.copyfile(other, path.with_name("new.png"))
    else:
        away = sorted(each for each in path.parents[1].iterdir() if each != path.parent)
        path.rename(bench.random.choice(away) / "moved.png")


def bytes_unlike(path: Path, files: list[Path]) -> bytes:
    return next(other for each in files if (other := each.read_bytes()) != path.read_bytes())


def workers(bench: Bench) -> Tally:
    """One of the processes that decode images is killed."""
    tally = Tally("data worker", "kill -9 of a process that decodes images: one line; resumed, same results")
    bench = photos(bench, *STREAMED)
    store = bench.folder / "worked"
    tries = 0
    while tally.tried < bench.many(20) and (tries := tries + 1) <= 5 * bench.many(20):
        shutil.rmtree(store, ignore_errors=True)
        pid = bench.server.start("run", PHOTOS, "--out", str(store), "--json", *STREAMED)
        hit: list[str] = []

        def act(stage: str, pid: int = pid, hit: list[str] = hit) -> None:
            until = time.monotonic() + 1.0
            while time.monotonic() < until and not hit:
                with contextlib.suppress(OSError):
                    if found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                        os.kill(int(bench.random.choice(found)), signal.SIGKILL)
                        hit.append(stage)

        code, said = bench.server.wait(somewhere(bench, READING, act))
        time.sleep(0.0 if hit else 1.0)
        if not hit:
            continue
        early = "a decoding process ended early"
        trouble = (one_line(said) or ("" if early in said[-1] else said[-1])) if code == 1 else ""
        trouble = trouble or (f"exit {code}: {said[-1:]}" if code not in (0, 1) else "")
        again, lines = bench.server.run(store, *STREAMED, recipe=PHOTOS)
        trouble = trouble or (f"exit {again}: {lines[-1]}" if again else bench.same(store))
        tally.case(f"{hit[0]}, {'said' if code else 'without effect'}", trouble)
    return tally


def ranks(bench: Bench) -> Tally:
    """Two processes under torchrun's agent train together, and one of them is killed."""
    tally = Tally("rank", "kill -9 of one of two torchrun processes (gloo): one line; resumed, same as two unharmed")
    bench = dataclasses.replace(bench, whole=whole(bench.server, bench.folder / "two", ranks=2))
    store = bench.folder / "ranked"
    for case in range(bench.many(20)):
        shutil.rmtree(store, ignore_errors=True)
        victim = case % 2
        pids: dict[str, int] = {}
        hit: list[str] = []

        def act(stage: str, victim: int = victim, pids: dict[str, int] = pids, hit: list[str] = hit) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[str(victim)], signal.SIGKILL)
                hit.append(stage)

        listen = somewhere(bench, TOGETHER if case % 4 < 3 else STAGES, act)

        def on_line(line: str, pids: dict[str, int] = pids, listen: Callable[[str], None] = listen) -> None:
            if line.startswith("rank "):
                _, rank, _, pid = line.split()
                pids[rank] = int(pid)
            listen(line)

        code, said = bench.server.run(store, on_line=on_line, ranks=2)
        said = [line for line in said if not TORCHRUN.match(line)]
        trouble = one_line(said) or ("" if any(RESUME in line for line in said) else "no word of how to go on")
        trouble = trouble if code == 1 else (f"exit {code}: {said[-1:]}" if code else "")
        again, lines = bench.server.run(store, ranks=2)
        trouble = trouble or (f"exit {again}: {lines[-1]}" if again else bench.same(store))
        tally.case(f"rank {victim}, {hit[0] if hit else 'too late'}", trouble)
    return tally


def sweeps(bench: Bench) -> Tally:
    """A sweep whose points are trained on a Ray cluster of this machine, ended in the middle by a signal."""
    tally = Tally("sweep", "a sweep on Ray ended by a signal: the same command ends as a sweep without Ray and signal")
    words = ["sweep", "tiny.toml", "--grid", "distill.lr=0.05,0.02", "--json", "--out"]
    bench.server.start(*words, str(bench.folder / "swept"))
    code, said = bench.server.wait()
    if code:
        raise RuntimeError(f"the sweep without a fault ended with {code}: {said[-1]}")
    expected = swept(bench.folder / "swept")
    store = bench.folder / "sweeping"
    for case in range(bench.many(3)):
        shutil.rmtree(store, ignore_errors=True)
        number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[case % 3]
        pid = bench.server.start(*words, str(store), "--engine", "ray")
        timer = threading.Timer(bench.random.uniform(0, 5), os.kill, [pid, number])

        def on_line(line: str, timer: threading.Timer = timer) -> None:
            if line.startswith("[ray ") and timer.ident is None:
                timer.start()

        code, said = bench.server.wait(on_line)
        timer.cancel()
        trouble = "a traceback" if any("Traceback" in line for line in said) else ""
        bench.server.start(*words, str(store), "--engine", "ray")
        again, lines = bench.server.wait()
        if not trouble:
            odd = "" if again else differing(expected, swept(store))
            trouble = f"exit {again}: {lines[-1:]}" if again else odd
        tally.case(f"{number.name}, exit {code}", trouble)
    return tally


def swept(store: Path) -> dict[str, Any]:
    """Digests of all finished stages that hold no times, and the accuracy of each point."""
    facts: dict[str, Any] = {k: v for k, v in finished(store).items() if k.rpartition("-")[0] not in TIMED}
    table = json.loads((store / NAME / "sweep" / "sweep.json").read_text())
    return facts | {row["name"]: (row["status"], row["accuracy"]) for row in table["points"]}


CASES: dict[str, Callable[[Bench], Tally]] = {
    "data": data_changes,
    "worker": workers,
    "rank": ranks,
    "sweep": sweeps,
}
