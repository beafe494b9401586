"""kill -9, again and again: in every stage, by time and by what is about to be written."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from fault_runs import NAME, RECIPE_FILE, STAGES, Bench, Tally, kill

PLACES = ("start", *STAGES, "pages")  # `pages`: report and released file, after the last stage
PAGES_S = 0.05
START_S = 0.1  # to read the recipe and what is there
COLD_S = 8.0  # fresh processes that measure memory; in every eighth store


def kills(bench: Bench) -> Tally:
    """Store after store, one death in each place on the way through; then to the end. Every death is a case."""
    tally = Tally("kill", "kill -9 at a random moment or before a random change of the disk; resumed, same results")
    wanted, number = bench.many(500), 0
    while tally.tried < wanted:
        store = bench.folder / f"kill{number}"
        trouble = ""
        for place in PLACES:
            done = {path.name.rpartition("-")[0] for path in (store / NAME).glob("*-*/") if not path.suffix}
            if place in done or tally.tried >= wanted:
                continue
            code, said, at = killed(bench, store, place, cold=number % 8 == 0 and place == "profile")
            trouble = bench.sound(store) if code in (0, -9) else f"exit {code}: {said[-1] if said else ''}"
            if code or trouble:
                tally.case(at, trouble)
            if trouble:
                break
        if not trouble:
            code, said = bench.server.run(store)
            if trouble := f"exit {code}: {said[-1]}" if code else bench.same(store):
                tally.failures.append(f"after kills in every stage: {trouble}")
        shutil.rmtree(store, ignore_errors=True)
        number += 1
        bench.so_far(tally)
    return tally


def killed(
    bench: Bench, store: Path, place: str, *, cold: bool = False, by_time: bool | None = None
) -> tuple[int, list[str], str]:
    """One run that is killed in `place`: exit code, what was said, and where it was when it died.

    It dies before a change of the disk that is drawn evenly among those of the stage, or at a moment drawn evenly from
    the time that the stage takes; `by_time`: which, else drawn as well.
    """
    whole, chance = bench.whole, bench.random
    if by_time is None:
        by_time = chance.random() < 0.5
    by_time = by_time or cold or place not in STAGES
    options = {} if by_time else {"die": [place, chance.randint(1, whole.changes[place])]}
    seconds = {"start": START_S, "pages": PAGES_S, **whole.seconds}[place] + COLD_S * cold
    where = ["start"]
    timer = threading.Timer(chance.uniform(0, seconds), lambda: kill(pid))
    pid = bench.server.start("run", RECIPE_FILE, "--out", str(store), "--json", cold=cold, **options)
    if place == "start":
        timer.start()

    def on_line(line: str) -> None:
        stage, _, rest = line.partition(": ")
        if rest.startswith("building"):
            where.append(stage)
        elif stage == "gate" and rest.startswith(("done", "fresh")):
            where.append("pages")
        if by_time and where[-1] == place and timer.ident is None:
            timer.start()

    code, said = bench.server.wait(on_line)
    timer.cancel()
    if timer.ident is not None:
        timer.join()
    return code, said, where[-1]
