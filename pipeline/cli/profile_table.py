"""The table that `edgestill profile` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from pipeline.cli.output import console, table


def show_all(found: Mapping[str, Any], *, against: str) -> None:
    from rich.text import Text

    from pipeline.quantities import ABSENT, show

    ratios = {(row["kind"], row["subject"]): row for row in found["comparisons"]}
    # The tail is shown where anything was measured often enough (662 and 6,636 queries) to tell it.
    tails = [q for q in ("p99", "p99_9") if any(row[f"{q}_ms"] for s in found["subjects"] for row in s["latency"])]
    percentiles = ["p90_ms", "p90_bound_ms", *(f"{q}_ms" for q in tails)]  # --json has the bounds of all
    titles = ["p90", "p90 at most", *(q.replace("_", ".") for q in tails)]
    on_device = ("on device",) if any(subject["device_memory"] for subject in found["subjects"]) else ()
    numbers = ("p50", *titles, "images/s", "speed-up", "memory", *on_device, "first call", "size")
    rows = table("subject", "", "time", *numbers, right=numbers)
    labels = _short_names([row["name"] for row in found["subjects"]])
    marked = 0
    for subject in found["subjects"]:
        for latency in subject["latency"]:
            ratio = ratios.get((latency["kind"], subject["name"]))
            speed = ABSENT if ratio is None else show(ratio["speedup_p50"], "x")
            if ratio and ratio["lower"] is not None:
                speed += f" ({show(ratio['lower'], 'x')} to {show(ratio['upper'], 'x')})".replace("\u00d7", "")
            marked += latency["contaminated_blocks"]
            rows.add_row(
                Text(labels[subject["name"]]),
                subject["precision"],
                latency["kind"].replace("_", " "),
                *(show(latency[key], "ms") for key in ("p50_ms", *percentiles)),
                show(latency["throughput_per_s"]),
                speed,
                show(subject["peak_memory_bytes"], "bytes"),
                *(show((subject["device_memory"] or {}).get("total_bytes"), "bytes") for _ in on_device),
                show(subject["first_ms"], "ms"),
                show(subject["size_bytes"], "bytes"),
            )
    console().print(rows)
    host = found["conditions"]
    state = f"governor {host['governor'] or 'unknown'}, load {host['load_1min'] or 0:.1f}"
    click.echo(f"{host['cpu']}, {host['threads']} thread(s) on {host['device']}, {state}; speed-up against {against}")
    if marked:
        click.echo(f"note: other programs disturbed {marked} blocks; ratios hold better than times")
    for subject in found["subjects"]:
        for what, why in subject["missing"].items():
            click.echo(f"note: {what} of {subject['name']} is missing: {why}")


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name without its folders, where that still tells all of them apart."""
    short = {name: name.rpartition("/")[2] for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}
