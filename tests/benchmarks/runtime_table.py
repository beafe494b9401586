"""Every runtime and precision that runs here: latency at batch 1 and 32, accuracy where there is data, memory, size.

    python tests/benchmarks/lineup.py --cifar RUN --work WORK                      (once, on any machine)
    python tests/benchmarks/runtime_table.py --work WORK --json > artifacts/reference/runtimes-cpu.json    (a quiet one)

The CIFAR-10 student of a run, and torchvision's resnet18 and mobilenet_v2 at 224 pixels (random weights: their
accuracy means nothing and is not stated). All subjects of a network and batch take turns in blocks (ABBA). The speed-up
is against torch's eager fp32 in channels-last, with a 99 % bound on each side by a bootstrap over blocks where there
are enough of them; a percentile without enough queries is null. Memory is the peak of a fresh process that loads the
file and infers at batch 1. Without --json it prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from contest import origin, timed

from profiles.stats import ratio_of_medians

BASELINE = "fp32@torch"
KEPT = ("name", "runtime", "precision", "sha256", "size_bytes", "peak_memory_bytes", "accuracy")
FIGURES = ("n", "blocks", "p50_ms", "p90_ms", "p99_ms", "p90_bound_ms", "throughput_per_s", "contaminated_blocks")


def table_of(network: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    subjects = [
        row for row in network["subjects"] if row["maker"] == "edgestill" and row["runtime"] not in args.without
    ]
    rows = {row["name"]: {key: row.get(key) for key in KEPT} | {"latency": []} for row in subjects}
    for batch in map(int, args.batches.split(",")):
        pixels = batch * network["input"][1] ** 2
        heavy = pixels >= 32 * 224**2
        blocks = args.heavy_blocks if heavy else args.blocks
        seconds = 0.05 if heavy else args.seconds
        found = timed(
            network, subjects, batch, threads=args.threads, min_seconds=seconds, blocks=blocks, min_queries=blocks
        )
        base = found[BASELINE]
        for name, result in found.items():
            figures = {"batch": batch, "threads": args.threads} | {key: result.row()[key] for key in FIGURES}
            if name != BASELINE:
                ratio = ratio_of_medians(base.samples_ns, base.block, result.samples_ns, result.block)
                figures["speedup"] = {"value": ratio.value, "lower": ratio.lower, "upper": ratio.upper}
            rows[name]["latency"].append(figures)
    return list(rows.values())


def show(name: str, network: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    print(f"\n{name}: {network['weights']}")
    batches = [entry["batch"] for entry in rows[0]["latency"]]
    print(
        f"{'':28s}"
        + "".join(f"{f'batch {b}':>12s} {'speed-up':>9s}" for b in batches)
        + "   accuracy    memory     size"
    )
    for row in rows:
        cells = "".join(
            f"{entry['p50_ms']:9.3f} ms {(entry.get('speedup') or {'value': 1.0})['value']:8.2f}x"
            for entry in row["latency"]
        )
        accuracy = f"{row['accuracy']['value']:.2%}" if row["accuracy"] else "-"
        size = f"{row['size_bytes'] / 1e6:.2f} MB" if row["size_bytes"] else "-"
        memory = f"{row['peak_memory_bytes'] / 1e6:.0f} MB" if row["peak_memory_bytes"] else "-"
        print(f"{row['name']:28s}{cells}   {accuracy:>8s}  {memory:>8s} {size:>8s}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder that lineup.py has filled")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each subject and batch (2)")
    parser.add_argument("--blocks", type=int, default=30, help="interleaved rounds (30)")
    parser.add_argument("--heavy-blocks", type=int, default=7, help="of 32 images of 224 pixels, seconds a query (7)")
    parser.add_argument("--batches", default="1,32", help="sizes with commas between (1,32)")
    parser.add_argument("--threads", type=int, default=1, help="the same for every runtime (1)")
    parser.add_argument("--without", action="append", default=[], help="a runtime; may be repeated")
    parser.add_argument("--only", help="names of networks, with commas between")
    parser.add_argument("--json", action="store_true", help="print the record")
    args = parser.parse_args()
    lineup = json.loads((args.work / "lineup.json").read_text())
    networks = {}
    for name, network in lineup["networks"].items():
        if args.only and name not in args.only.split(","):
            continue
        rows = table_of(network, args)
        about = {key: value for key, value in network.items() if key != "subjects"}
        networks[name] = about | {"subjects": rows}
        if not args.json:
            show(name, network, rows)
        else:
            print(f"{name}: done", file=sys.stderr)
    if args.json:
        settings = {"threads": args.threads, "seconds": args.seconds, "blocks": args.blocks}
        settings["heavy_blocks"] = args.heavy_blocks
        print(json.dumps({**origin(lineup), "settings": settings, "networks": networks}, indent=1))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the record is out; torch and OpenVINO together took 50 s more to shut down
