"""What the store and a run survive, by trying it: cases and failures of each fault.

    python tests/benchmarks/faults.py --json artifacts/reference/faults.json
    python tests/benchmarks/faults.py --only kill --cases 40

Every case ends with the artifact hashes, per-sample outcomes and accuracies of a run that met no fault, or with one
line that says what is wrong; anything else is a failure, and the exit code is 1. Needs Linux (fork, tmpfs, /proc).
`--merge FILE` adds to a record, so that a long one can be made in parts.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import fault_around
import fault_cases
import fault_fuzz
from fault_runs import Bench, prepare, serving, whole

from pipeline.environment import collect

CASES = {**fault_cases.CASES, **fault_around.CASES, "fuzz": fault_fuzz.fuzz}
RECORD = "artifacts/reference/faults.json"
STAND_INS = [
    "kill and the faults of a whole run: forks of one process, so that a run does not pay for torch's import",
    "the same: peak memory and first call are left out, but in the profile stage of every eighth store of kills",
    "the same: a checkpoint after every step instead of every ten seconds; a table leaves no 64 MB of the disk free",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="this fault; may be repeated")
    parser.add_argument("--cases", type=int, help="so many cases instead of the usual number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    parser.add_argument(
        "--merge", action="store_true", help="keep what FILE has of other faults, and add to equal ones"
    )
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    before = json.loads(given.json.read_text())["faults"] if given.merge and given.json and given.json.exists() else []

    def write(found: list[dict[str, Any]]) -> None:
        if given.json:
            save(given.json, before, found)

    with tempfile.TemporaryDirectory(prefix="edgestill-faults-") as name:
        folder = Path(name)
        prepare(folder)
        sys.path.append(name)  # its network
        with serving(folder) as server:
            bench = Bench(
                folder=folder,
                server=server,
                whole=whole(server, folder / "whole"),
                random=random.Random(given.seed),
                cases=given.cases,
                so_far=lambda tally: write([*rows, tally.row()]),
            )
            for fault in given.only or CASES:
                found = CASES[fault](bench)
                for tally in found if isinstance(found, list) else [found]:
                    rows.append(tally.row())
                    print(line(rows[-1]), flush=True)
                write(rows)
    sys.exit(1 if any(row["failed"] for row in rows) else 0)


def line(row: dict[str, Any]) -> str:
    counts = f"{row['tried']:>4} tried  {row['failed']:>3} failed  {row['seconds']:>7.1f} s"
    text = f"{row['fault']:<22} {counts}  {row['what']}"
    return "\n".join([text, *(f"    {failure}" for failure in row["failures"])])


def save(path: Path, before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    environment = collect()
    words = [RECORD if word == str(path) else word for word in sys.argv[1:]]
    command = shlex.join(["python", "tests/benchmarks/faults.py", *words])
    known = {row["fault"]: row for row in before}
    for row in rows:
        made = {"commands": [command], "commits": [(environment["source"] or {}).get("commit")]}
        known[row["fault"]] = added(known.get(row["fault"]), row | made)
    record = {
        "hardware": {key: environment[key] for key in ("cpu", "cores", "memory_bytes")},
        "versions": {key: environment["packages"].get(key) for key in ("torch", "onnx", "onnxruntime", "numpy")},
        "stand_ins": STAND_INS,
        "faults": list(known.values()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def added(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """Two parts of one fault as one row."""
    if one is None:
        return other
    where = {key: one["where"].get(key, 0) + other["where"].get(key, 0) for key in {**one["where"], **other["where"]}}
    return other | {
        "tried": one["tried"] + other["tried"],
        "failed": one["failed"] + other["failed"],
        "failures": [*one["failures"], *other["failures"]][:20],
        "where": where,
        "seconds": round(one["seconds"] + other["seconds"], 1),
        **{key: list(dict.fromkeys([*one[key], *other[key]])) for key in ("commands", "commits")},
    }


if __name__ == "__main__":
    main()
