"""The report's `ladder` for people: rows of the page and of the terminal. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.ladder import speed_sentence
from pipeline.quantities import ABSENT, show

MOST_LAYERS = 12
SIGNS = {"holds": "pass", "undecided": "undecided", "misses": "fail"}


def ladder_view(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the templates show; None where the report has no ladder."""
    found = report.get("ladder")
    if not found:
        return None
    unit = str((report.get("task") or {}).get("show") or "fraction")
    chosen = (found.get("shipped") or {}).get("artifact")
    return {
        "sentences": [form["sentence"] for form in (found.get("forms") or {}).values()],
        "shipped": (found.get("shipped") or {}).get("sentence"),
        "rungs": [_rung(record, unit, chosen) for record in found.get("rungs") or ()],
        "trades": [
            {"form": record["form"], "rows": [_candidate(row, unit) for row in record["candidates"]]}
            for record in found.get("rungs") or ()
            if record.get("candidates")
        ],
        "rankings": [_ranking(form, row) for form, row in (found.get("sensitivity") or {}).items()],
    }


def _rung(record: Mapping[str, Any], unit: str, chosen: str | None) -> dict[str, Any]:
    common = {
        "form": record["form"],
        "label": record["label"],
        "seconds": show(record.get("seconds"), "s"),
        "ships": record["artifact"] == chosen,
        "left_out": record.get("left_out", ""),
    }
    if record.get("left_out"):
        return common | dict.fromkeys(("accuracy", "interval", "p50", "size"), ABSENT) | {"sign": "", "why": ""}
    low, high = record["accuracy"]["ci95"]
    speed = speed_sentence(record)
    why = "; ".join(check["reason"] for check in record["checks"])
    layers = record.get("kept_fp32") or []
    if layers:
        named = ", ".join(layers[:MOST_LAYERS]) + (
            f" and {len(layers) - MOST_LAYERS} more" * (len(layers) > MOST_LAYERS)
        )
        why += f"; in float: {named}"
    return common | {
        "accuracy": show(record["accuracy"]["value"], unit),
        "interval": f"{show(low, unit)} to {show(high, unit)}",
        "p50": show(record.get("p50_ms"), "ms"),
        "size": show(record.get("size_bytes"), "bytes"),
        "sign": SIGNS[record["state"]],
        "state": record["state"],
        "why": f"{why}; {speed} on {record['runtime']}" if speed else why,
    }


def _candidate(row: Mapping[str, Any], unit: str) -> dict[str, Any]:
    return {
        "layers": len(row["kept_fp32"]),
        "names": ", ".join(row["kept_fp32"][:MOST_LAYERS]) + (", ..." * (len(row["kept_fp32"]) > MOST_LAYERS)),
        "accuracy": show(row["value"], unit),
        "p50": show(row["p50_ms"], "ms"),
        "sign": SIGNS[row["state"]],
        "chosen": row["chosen"],
    }


def _ranking(form: str, found: Mapping[str, Any]) -> dict[str, Any]:
    def decibels(value: float | None) -> str:
        return "no noise" if value is None else f"{value:.1f} dB"

    layers = found["layers"]
    return {
        "form": form,
        "samples": found["samples"],
        "all": decibels(found["all_db"]),
        "more": max(0, len(layers) - MOST_LAYERS),
        "layers": [
            {
                "name": layer["layer"] or layer["node"],
                "operator": layer["operator"],
                "alone": decibels(layer["alone_db"]),
                "rest": decibels(layer["rest_db"]),
            }
            for layer in layers[:MOST_LAYERS]
        ],
    }


def terminal_lines(report: Mapping[str, Any]) -> list[str]:
    """What `edgestill run` says of the climb: a line a form, and the rung that was put before the gate."""
    view = ladder_view(report)
    return [] if view is None else [*view["sentences"], *([view["shipped"]] if view["shipped"] else [])]
