"""Is the artifact that `auto` picks at least as fast as the best that Olive, NNCF and ONNX Runtime make?

    python tests/benchmarks/lineup.py --cifar RUN --work WORK --rivals --olive OLIVE/bin/python     (once, any machine)
    python tests/benchmarks/rivals.py --work WORK --json > artifacts/reference/rivals.json          (a quiet machine)

For each network and batch: first everything takes part in a short interleaved measurement, in which we choose as `auto`
does (the fastest of our files and runtimes, those left out whose accuracy missed the recipe's limits on validation) and
each rival's fastest variant is chosen for it, too. Then the chosen ones are measured anew, side by side in blocks
(ABBA); the ratio has a 99 % bound on each side by a bootstrap over blocks. The choice is not measured by the samples
that made it. Rivals run on the runtime that they are made for: ONNX Runtime, and OpenVINO without any hint (NNCF).

It holds where rival's time / our time is at least 0.97 for every rival and its upper bound at least 1: none is faster
beyond doubt, and none looks faster by more than two measurements of one file differ. Accuracy is of the CIFAR-10
student on all test images, paired: `accuracy_drop_pt` is what a rival loses against ours, with one-sided 99 % bounds.
Exits with 1 where a rival is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from contest import origin, timed

from pipeline.intervals import Pairs, paired_difference
from profiles.stats import ratio_of_medians

OURS = "edgestill"
WITHIN = 0.03


def choose(network: dict[str, Any], batch: int, args: argparse.Namespace) -> tuple[dict[str, dict], dict[str, float]]:
    """(maker -> its fastest subject, p50 of every subject in milliseconds) by a short interleaved measurement."""
    running = [s for s in network["subjects"] if "builder" not in s and not s.get("passed_over")]
    found = timed(
        network, running, batch, threads=args.threads, min_seconds=args.choice_seconds, blocks=5, min_queries=5
    )
    p50 = {name: float(np.median(result.block_medians_ms)) for name, result in found.items()}
    best: dict[str, dict] = {}
    for subject in sorted(running, key=lambda row: p50[row["name"]]):
        best.setdefault(subject["maker"], subject)
    return best, p50


def compare(network: dict[str, Any], batch: int, args: argparse.Namespace) -> dict[str, Any]:
    best, p50 = choose(network, batch, args)
    found = timed(
        network,
        list(best.values()),
        batch,
        threads=args.threads,
        min_seconds=args.seconds,
        blocks=args.blocks,
        min_queries=args.blocks,
    )
    ours = best[OURS]
    mine = found[ours["name"]]
    rows = []
    for maker, subject in best.items():
        result = found[subject["name"]]
        row = {"maker": maker, "subject": subject["name"], "sha256": subject["sha256"]}
        row |= {key: result.row()[key] for key in ("n", "blocks", "p50_ms", "p90_ms", "contaminated_blocks")}
        row |= {"size_bytes": subject["size_bytes"], "accuracy": subject.get("accuracy")}
        if maker != OURS:
            ratio = ratio_of_medians(result.samples_ns, result.block, mine.samples_ns, mine.block)
            row |= {"times_ours": ratio.value, "lower": ratio.lower, "upper": ratio.upper}
            not_slower = ratio.upper is not None and ratio.upper >= 1.0
            row["ours_at_least_as_fast"] = not_slower and ratio.value >= 1.0 - WITHIN
            row["accuracy_drop_pt"] = drop(subject, ours)
        rows.append(row)
    return {
        "batch": batch,
        "chosen": ours["name"],
        "choice_p50_ms": p50,
        "contenders": rows,
        "holds": all(row.get("ours_at_least_as_fast", True) for row in rows),
    }


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
    parser.add_argument("--seconds", type=float, default=3.0, help="of each contender in the final (3)")
    parser.add_argument("--choice-seconds", type=float, default=0.3, help="of each subject in the choice (0.3)")
    parser.add_argument("--blocks", type=int, default=40, help="interleaved rounds of the final (40)")
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
        "settings": {"threads": args.threads, "seconds": args.seconds, "blocks": args.blocks},
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
