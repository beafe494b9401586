"""Records of devices, brought back to the run whose bytes they measured: kept beside its report and shown in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.atomic import write_bytes
from pipeline.bundle.layout import SUFFIXES
from pipeline.errors import UserError
from pipeline.manifest import sha256_json

FOLDER = "devices"


def join(folder: Path, report: Mapping[str, Any], record: Path) -> Path:
    """Keep a copy of `record` (the folder that profiling a bundle wrote, or its report.json) with the run in `folder`.

    Raises UserError for a record of other bytes than `report` judged.
    """
    from pipeline.reports.report import load

    found = judged_again(load(record), report, str(record))
    target = folder / FOLDER / f"{sha256_json(found['record'])[:12]}.json"
    source = record / "report.json" if record.is_dir() else record
    write_bytes(target, source.read_bytes())
    return target


def joined(folder: Path, report: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The kept records that fit `report`, oldest first, each judged again by its rules; and why others are left out."""
    from pipeline.reports.report import load

    fitting, left_out = [], []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            fitting.append(judged_again(load(path), report, str(path))["judged"])
        except UserError as error:
            left_out.append(str(error))
    return sorted(fitting, key=lambda record: str(record.get("created"))), left_out


def judged_again(record: dict[str, Any], report: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """`record`, and `judged`: the same with the verdict by the rules of `report`, not those that it brought along."""
    from pipeline.gates.judge import judge
    from pipeline.reports import ledger

    if not isinstance(record.get("bundle"), dict):
        raise UserError(f"{where}: not measured from a bundle; give what 'edgestill profile BUNDLE' wrote")
    try:
        theirs, ours = hashes(record), hashes(report)
        verdict = judge(record, report["recipe"].get("gate") or ())
        judged = record | {"gates": verdict.gates(), "verdict": verdict.verdict}
        ledger.rows(judged)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: damaged ({type(error).__name__}: {error}); measure the bundle again") from None
    for name, sha256 in theirs.items():
        if ours.get(name) != sha256:
            other = "it has none of that name" if name not in ours else f"not {ours[name][:12]}"
            raise UserError(
                f"{where}: measured {name} of sha256 {sha256[:12]}, which this run did not make ({other}); bundle this "
                "run and measure that"
            )
    return {"record": record, "judged": judged}


def hashes(report: Mapping[str, Any]) -> dict[str, str]:
    """Artifact -> sha256 of its file; OpenVINO's .xml names the sha256 of its weights."""
    return {
        str(row["name"]).partition("@")[0]: str(row["sha256"])
        for row in report["subjects"]
        if row.get("format") in SUFFIXES
    }
