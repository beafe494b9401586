"""Is the artifact that `auto` picks at least as fast as the best that Olive, NNCF and ONNX Runtime make?

    python tests/benchmarks/lineup.py --cifar RUN --work WORK --rivals --olive OLIVE/bin/python     (once, any machine)
    python tests/benchmarks/rivals.py --work WORK --json > artifacts/reference/rivals.json          (a quiet machine)

For each network and batch: first everything takes part in interleaved measurements (a short one, and a longer one of
the best), in which we choose as `auto` does (the fastest of our files and runtimes, those left out whose accuracy
missed the recipe's limits on validation) and each rival's fastest variant is chosen for it, too. At batch 1 of the
CIFAR-10 student it is not chosen again: there ours is what `auto` picked in the run itself. Then the chosen ones
are measured anew, side by side in blocks (ABBA), in several openings: a compiled network keeps the memory that it was
given, and two openings of one file differ by more than two measurements of one opening. So the ratio of medians is
taken in each opening, their geometric mean is the result, and its 99 % bound on each side is Student's, over openings.
The choice is not measured by the samples that made it. Rivals run on the runtime that they are made for: ONNX Runtime,
and OpenVINO without any hint (NNCF).

It holds where rival's time / our time is at least 0.97 for every rival and its upper bound at least 1: none is faster
beyond doubt, and none looks faster by more than two measurements of one file differ. Accuracy is of the CIFAR-10
student on all test images, paired: `accuracy_drop_pt` is what a rival loses against ours, with one-sided 99 % bounds.
Exits with 1 where a rival is faster.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

sys.path.insert(0, str(Path(__file__).parents[2]))

from contest import origin, timed

from pipeline.gates.intervals import Pairs, paired_difference

OURS = "edgestill"
WITHIN = 0.03
CLOSE, LOOKS = 1.3, 3  # within this of its maker's fastest a subject is looked at again, so many times


def choose(network: dict[str, Any], batch: int, args: argparse.Namespace) -> tuple[dict[str, dict], dict[str, float]]:
    """(maker -> its fastest subject, p50 of every subject in milliseconds): a short look at all, then some more, each
    an opening of its own, at those of each maker that are close to its fastest."""
    running = [s for s in network["subjects"] if "builder" not in s and not s.get("passed_over")]
    first = medians(network, running, batch, args, seconds=args.choice_seconds, blocks=5)
    quickest = {s["maker"]: min(first[o["name"]] for o in running if o["maker"] == s["maker"]) for s in running}
    close = [s for s in running if first[s["name"]] <= CLOSE * quickest[s["maker"]]]
    looks = [medians(network, close, batch, args, seconds=args.choice_seconds, blocks=8) for _ in range(LOOKS)]
    again = {s["name"]: float(np.median([look[s["name"]] for look in looks])) for s in close}
    best: dict[str, dict] = {}
    picked = (network.get("selection") or {}).get("chosen") if batch == 1 else None  # a run measures at batch 1
    if picked:
        best[OURS] = next(subject for subject in running if subject["name"] == picked)
    for subject in sorted(close, key=lambda row: again[row["name"]]):
        best.setdefault(subject["maker"], subject)
    return best, first | again


def medians(
    network: dict[str, Any], subjects: list[dict], batch: int, args: argparse.Namespace, *, seconds: float, blocks: int
) -> dict[str, float]:
    """name -> p50 in milliseconds, of one interleaved measurement."""
    how = {"threads": args.threads, "min_seconds": seconds, "blocks": blocks, "min_queries": blocks}
    found = timed(network, subjects, batch, **how)
    return {name: float(np.median(result.block_medians_ms)) for name, result in found.items()}


def compare(network: dict[str, Any], batch: int, args: argparse.Namespace) -> dict[str, Any]:
    best, p50 = choose(network, batch, args)
    p50s: dict[str, list[float]] = {maker: [] for maker in best}
    counts = {maker: {"n": 0, "contaminated_blocks": 0} for maker in best}
    how = {"threads": args.threads, "min_seconds": args.seconds, "blocks": args.blocks, "min_queries": args.blocks}
    for opening in range(args.openings):
        makers = list(best)
        makers = makers[opening % len(makers) :] + makers[: opening % len(makers)]  # nobody is always loaded first
        found = timed(network, [best[maker] for maker in makers], batch, **how)
        for maker in best:
            result = found[best[maker]["name"]]
            p50s[maker].append(float(np.median(result.samples_ns)) / 1e6)
            for key in counts[maker]:
                counts[maker][key] += result.row()[key]
    rows = []
    for maker, subject in best.items():
        row = {"maker": maker, "subject": subject["name"], "sha256": subject["sha256"], **counts[maker]}
        row |= {"p50_ms": float(np.median(p50s[maker])), "p50_ms_of_openings": p50s[maker]}
        row |= {"size_bytes": subject["size_bytes"], "accuracy": subject.get("accuracy")}
        if maker != OURS:
            value, lower, upper = geometric_mean(np.array(p50s[maker]) / np.array(p50s[OURS]))
            row |= {"times_ours": value, "lower": lower, "upper": upper}
            row["ours_at_least_as_fast"] = upper >= 1.0 and value >= 1.0 - WITHIN
            row["accuracy_drop_pt"] = drop(subject, best[OURS])
        rows.append(row)
    return {
        "batch": batch,
        "chosen": best[OURS]["name"],
        "choice_p50_ms": p50,
        "contenders": rows,
        "holds": all(row.get("ours_at_least_as_fast", True) for row in rows),
    }


def geometric_mean(ratios: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean of independent ratios (N,), N >= 2, and Student's one-sided 99 % bounds below and above."""
    logs = np.log(ratios)
    reach = float(scipy.stats.t.ppf(0.99, len(logs) - 1)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return tuple(math.exp(float(logs.mean()) + shift) for shift in (0.0, -reach, reach))


def drop(subject: dict[str, Any], ours: dict[str, Any]) -> dict[str, float] | None:
    """How much accuracy the rival loses against ours, points, with one-sided 99 % bounds; None without data."""
    if "right" not in subject:
        return None
    theirs, mine = np.load(subject["right"]), np.load(ours["right"])
    pairs = Pairs(
        both=int((theirs & mine).sum()),
        only_subject=int((theirs & ~mine).sum()),
        only_against=int((~theirs & mine).sum()),
        neither=int((~theirs & ~mine).sum()),
    )
    interval = paired_difference(pairs)
    return {"value": 100 * interval.value, "lower": 100 * interval.lower, "upper": 100 * interval.upper}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder that lineup.py has filled")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each contender in an opening (0.5)")
    parser.add_argument("--choice-seconds", type=float, default=0.3, help="of each subject in the choice (0.3)")
    parser.add_argument("--blocks", type=int, default=6, help="interleaved rounds of an opening (6)")
    parser.add_argument("--openings", type=int, default=6, help="times that the contenders are loaded anew (6)")
    parser.add_argument("--batches", default="1,32", help="sizes with commas between (1,32)")
    parser.add_argument("--threads", type=int, default=1, help="the same for everybody (1)")
    parser.add_argument("--only", help="names of networks, with commas between")
    parser.add_argument("--json", action="store_true", help="print the record")
    args = parser.parse_args()
    lineup = json.loads((args.work / "lineup.json").read_text())
    networks = {}
    for name, network in lineup["networks"].items():
        if args.only and name not in args.only.split(","):
            continue
        rows = []
        for batch in map(int, args.batches.split(",")):
            rows.append(compare(network, batch, args))
            say(name, rows[-1])
        about = {key: value for key, value in network.items() if key != "subjects"}
        networks[name] = about | {"batches": rows, "holds": all(row["holds"] for row in rows)}
    record = {
        **origin(lineup),
        "settings": {
            "threads": args.threads,
            "seconds": args.seconds,
            "blocks": args.blocks,
            "openings": args.openings,
        },
        "networks": networks,
        "holds": all(network["holds"] for network in networks.values()),
    }
    if args.json:
        print(json.dumps(record, indent=1))
    return 0 if record["holds"] else 1


def say(name: str, row: dict[str, Any]) -> None:
    print(f"{name} batch {row['batch']}: ours is {row['chosen']}", file=sys.stderr)
    for found in row["contenders"]:
        ratio = "" if "times_ours" not in found else f"  {found['times_ours']:.3f} times ours"
        bounds = "" if found.get("lower") is None else f" ({found['lower']:.3f} to {found['upper']:.3f})"
        told = "" if found["accuracy"] is None else f"  accuracy {found['accuracy']['value']:.2%}"
        print(f"  {found['subject']:36s} {found['p50_ms']:9.4f} ms{ratio}{bounds}{told}", file=sys.stderr)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the record is out; torch and OpenVINO together took 50 s more to shut down
