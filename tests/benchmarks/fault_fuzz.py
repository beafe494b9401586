"""tests/test_fuzz.py with many more examples, counted by what hypothesis says of each test."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from fault_runs import ROOT, Bench, Tally

WHAT = "bytes and values turned at random: no traceback, no hang, no write outside, memory bounded, one clear line"
HEAD = re.compile(r"tests/test_fuzz\.py::test_(\S+):")
COUNTS = re.compile(r"(\d+) passing(?: examples)?, (\d+) failing(?: examples)?,? and (\d+) invalid")


def fuzz(bench: Bench) -> list[Tally]:
    """A row for each kind of file."""
    command = [sys.executable, "-m", "pytest", "tests/test_fuzz.py", "-q", "--hypothesis-show-statistics"]
    command += [f"--hypothesis-seed={bench.random.randrange(10**6)}", "--timeout=3600"]
    environment = {**os.environ, "EDGESTILL_FUZZ_EXAMPLES": str(bench.many(1000))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    tallies: list[Tally] = []
    for line in done.stdout.splitlines():
        if head := HEAD.fullmatch(line.strip()):
            tallies.append(Tally(f"fuzz: {head[1].replace('_', ' ')}", WHAT))
            tallies[-1].seconds = 0.0
        elif counts := COUNTS.search(line):
            tallies[-1].tried += int(counts[1]) + int(counts[2])
        elif seconds := re.search(r"during \w+ phase \(([\d.]+) seconds\)", line):
            tallies[-1].seconds = (tallies[-1].seconds or 0.0) + float(seconds[1])
        elif line.startswith("FAILED "):
            name = line.split("::test_")[1].split(" ")[0].replace("_", " ")
            next(tally for tally in tallies if tally.fault == f"fuzz: {name}").failures.append(line)
    if not tallies or (done.returncode and not any(tally.failures for tally in tallies)):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-500:]}")
    return tallies
