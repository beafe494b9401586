"""How often is the gate wrong? Simulated releases whose truth is known, judged by the gate's own code.

    python tests/benchmarks/gate_error.py --json > artifacts/reference/gate-error.json
    python tests/benchmarks/gate_error.py --releases 200        (a first look)

Asked of every kind of check: how often a release that lies on its limit (the worst case of one beyond it) is released,
and one on the limit or well inside it refused, both at most 1 %; how often one well inside is left undecided, beside
the exact optimum where there is one; whether bounds miss the truth more often than they claim (at most 1 %, plus 1
point); and whether the further samples that an undecided check asks for decide it (4 times in 5). Tables of paired
counts are counted out in full; the rest is drawn. Latencies come from recorded runs (gate_error_latency.py).

Exits with 1 where a share is above what it may be by more than chance (three standard errors) explains.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import gate_error_counts as counts
import gate_error_dense as dense
import gate_error_latency as latency
from sample_report import CHOSEN, sample_report

from pipeline.gates.judge import judge

MAY_ERR = 0.01
MAY_MISS = 0.02  # a bound at 99 % covers at least what it claims minus 1 point
PROMISED = 0.80
ERRORS = ("released_on_the_limit", "refused_inside")
MISSES = ("missed_above", "missed_below", "refused_on_the_limit")


def whole_rows(rng: np.random.Generator, releases: int) -> list[dict[str, Any]]:
    """Whole reports through `judge`: three rules on one artifact, one of them broken by nothing but the limit itself.

    The accuracies nest by chance: the teacher is right on every sample of the first part and both err on the rest.
    """
    report = sample_report()
    subject = next(row for row in report["subjects"] if row["name"] == CHOSEN)
    row = next(
        row
        for row in report["comparisons"]
        if (row.get("subject"), row.get("against")) == (CHOSEN, "teacher") and row["kind"] == "accuracy"
    )
    n, changed, limit = 2_000, 0.06, 0.02
    rules = [
        {"metric": "accuracy_drop", "against": "teacher", "max": "2pt"},
        {"metric": "flip_rate", "against": "teacher", "max": 0.08},
        {"metric": "size_bytes", "max": 200_000},
    ]
    found = []
    for place, drop in (("on the limit of one rule", limit), ("inside all of them", 0.0)):
        tally = dict.fromkeys(("released", "refused", "undecided"), 0)
        for _ in range(releases):
            lost, won, rest = rng.multinomial(n, [(changed + drop) / 2, (changed - drop) / 2, 1 - changed])
            both = int(rng.binomial(rest, 0.9))
            row |= {"n": n, "both": both, "only_subject": int(won), "only_against": int(lost)}
            row |= {"neither": int(rest) - both, "agree": int(rest)}
            subject["accuracy"] |= {"n": n, "value": (both + int(won)) / n}
            tally[judge(report, rules).verdict] += 1
        shares = {key: value / releases for key, value in tally.items()}
        key = "released_on_the_limit" if drop else "refused_inside"
        found.append(
            {"gate": f"three rules, {place}", "n": n, "releases": releases, **shares}
            | {key: shares["released" if drop else "refused"]}
        )
    return found


def failures(row: dict[str, Any]) -> list[str]:
    """What of a row is worse than it may be, beyond three standard errors of its own count."""
    found, drawn = [], row.get("releases")
    for keys, most in ((ERRORS, MAY_ERR), (MISSES, MAY_MISS)):
        for key in keys:
            noise = 3 * math.sqrt(most * (1 - most) / drawn) if drawn else 0.0
            if row.get(key, 0.0) > most + noise:
                found.append(f"{key} {100 * row[key]:.2f} %, {100 * most:g} % allowed")
    if "decided" in row and row["decided"] < PROMISED - 3 * math.sqrt(0.16 / row["releases"]):
        found.append(f"decided {100 * row['decided']:.0f} %, {100 * PROMISED:g} % promised")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the record instead of the table")
    parser.add_argument("--releases", type=int, default=2_000, help="synthetic releases a setting")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, releases = np.random.default_rng(arguments.seed), arguments.releases
    begin = time.perf_counter()
    parts = {
        "paired counts": counts.accuracy_rows,
        "shares": counts.share_rows,
        "calibration": lambda: counts.calibration_rows(rng, releases),
        "whole reports": lambda: whole_rows(rng, releases // 2),
        "dense metrics": lambda: dense.rows(rng, releases),
        "latency": lambda: latency.rows(rng, max(100, releases // 5)),
        "speed-up": lambda: latency.speedup_rows(rng, max(100, releases // 5)),
        "more samples": lambda: [
            counts.planning_row(rng, max(100, releases // 5)),
            dense.planning_row(rng, max(100, releases // 5)),
            latency.planning_row(rng, max(50, releases // 20)),
        ],
    }
    rows: list[dict[str, Any]] = []
    for name, part in parts.items():
        started = time.perf_counter()
        rows += [{k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()} for row in part()]
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    for row in rows:
        row["worse_than_allowed"] = failures(row)
    worse = sum(bool(row["worse_than_allowed"]) for row in rows)
    if arguments.json:
        print(json.dumps(record(rows, arguments, time.perf_counter() - begin), indent=1))
    else:
        show(rows)
    print(f"{len(rows)} settings, {worse} of them worse than allowed", file=sys.stderr)
    return 1 if worse else 0


def record(rows: list[dict[str, Any]], arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    from pipeline.environment import collect

    options = f" --releases {arguments.releases}" if arguments.releases != 2_000 else ""
    environment = collect()
    return {
        "command": f"python tests/benchmarks/gate_error.py --json{options}",
        "seed": arguments.seed,
        "seconds": round(seconds, 1),
        "environment": {key: environment.get(key) for key in ("python", "system", "cpu", "cores")}
        | {"numpy": np.__version__, "load": os.getloadavg()[0]},
        "rows": rows,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """One line a setting: what was asked, and every share in per cent."""
    for row in rows:
        what = ", ".join(
            f"{k} {v}" for k, v in row.items() if k in ("n", "law", "subject", "limit_pt", "changed", "drift")
        )
        shares = [f"{k} {100 * v:.2f} %" for k, v in row.items() if isinstance(v, float) and k not in SETTINGS]
        print(f"{row['gate']}: {what}: {'; '.join(shares + row['worse_than_allowed'])}")


SETTINGS = ("limit_pt", "changed", "drift", "truth", "share")

if __name__ == "__main__":
    sys.exit(main())
