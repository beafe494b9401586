"""What the report says of the precision ladder: every rung that was tried, the ranking of the layers, what shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe
from pipeline.stages import export, ladder, qat, quantize

KEPT = (
    *("form", "rung", "label", "runtime", "artifact", "seconds", "accuracy", "state", "checks", "settings", "samples"),
    *("p50_ms", "n", "threads", "batch", "against", "size_bytes", "kept_fp32", "candidates", "agreement", "left_out"),
    *("left_out_candidates", "missing"),
)


def ladder_of(recipe: Recipe, inputs: Mapping[str, Path], selection: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report's `ladder`; None where no layer was ranked and nothing was climbed."""
    found: dict[str, Any] = {"forms": {}, "rungs": [], "sensitivity": ranking(inputs)}
    for name, read in ((ladder.NAME, ladder.read), (qat.NAME, qat.read)):
        if name in inputs:
            part = read(inputs[name])
            found["forms"] |= part["forms"]
            found["rungs"] += part["rungs"]
            found["sensitivity"] |= part.get("sensitivity", {})
    if not found["rungs"] and not found["sensitivity"]:
        return None
    found["rungs"] = [{key: record[key] for key in KEPT if key in record} for record in in_order(found["rungs"])]
    found["shipped"] = shipped(found["rungs"], selection) if found["rungs"] else None
    return found


def ranking(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Form -> the sensitivity of its layers, as the quantize stage ranked them with `quantize.sensitivity`."""
    if quantize.NAME not in inputs:
        return {}
    index = json.loads((inputs[quantize.NAME] / export.INDEX).read_text())
    forms = {artifact: form for form, artifact in quantize.NAMES.items()}
    return {forms[name]: entry["sensitivity"] for name, entry in index.items() if "sensitivity" in entry}


def in_order(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Form by form, each from plain int8 up; the training of each form comes last."""
    forms = list(dict.fromkeys(record["form"] for record in records))
    return sorted(records, key=lambda record: forms.index(record["form"]))


def shipped(records: list[dict[str, Any]], selection: Mapping[str, Any]) -> dict[str, Any]:
    """The rung whose artifact was put before the gate; `rung` is None where that one was not climbed to."""
    chosen = str(selection.get("chosen") or "")
    artifact, _, runtime = chosen.partition("@")
    for record in records:
        if record["artifact"] == artifact and not record.get("left_out"):
            words = "plain int8" if record["rung"] == "plain" else f"rung {record['label']}"
            where = "" if runtime == record["runtime"] else f"; it was judged for the ladder on {record['runtime']}"
            sentence = f"{chosen} was put before the gate: {words} of the form {record['form']}{where}"
            return {"rung": record["rung"], "label": record["label"], "artifact": artifact, "sentence": sentence}
    sentence = f"{chosen or 'no artifact'} was put before the gate; it is no rung of the ladder"
    return {"rung": None, "label": None, "artifact": artifact or None, "sentence": sentence}
