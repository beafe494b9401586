"""`edgestill doctor --device NAME`: what a target takes, said on the host before anything is exported."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.output import console, say_next, table
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    from profiles.targets import Release, Target

OLDEST_PYTHON = (3, 10)
# Forms of files, the best for a GPU first: what int8 leaves in float should be fp16 there.
PREFERRED = ("gpu", "trt86", "portable", "fp16", "fp32")


def about(name: str) -> dict[str, Any]:
    """The facts of the target `name`, each of its releases with what it takes. Raises `UserError` for another name."""
    from profiles.targets import devices

    known = devices()
    if name not in known:
        raise UserError(f"--device: unknown device {name!r}{nearest(name, list(known))}")
    target = known[name]
    facts = asdict(target) | {"releases": [_release(target, release) for release in target.releases]}
    return facts | {"files": None if target.releases else _on_cpu()}


def _release(target: Target, release: Release) -> dict[str, Any]:
    """JSON of a release: `opsets`, `typing`, `runs_edgestill`, and `precisions`: precision -> the file to give it."""
    from exporters.tensorrt_check import rules_of
    from exporters.tensorrt_forecast import TYPING, forecast, typing_of

    rules = rules_of(release.edition, release.version)
    typing = typing_of(release.edition, release.version)
    files = [{"file": _name_of(found.form)} | asdict(found) for found in forecast(release.edition, release.version)]
    oldest = ".".join(map(str, OLDEST_PYTHON))
    too_old = _python(release.python) < OLDEST_PYTHON
    return asdict(release) | {
        "opsets": list(rules.opsets),
        "typing": TYPING[typing],
        "half_scales": rules.half_scales,
        "runs_edgestill": not too_old,
        "why_not": f"its Python {release.python} is older than {oldest}" if too_old else None,
        "files": files,
        "precisions": {precision: _best(precision, files) for precision in target.precisions},
    }


def _best(precision: str, files: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The file to give for a precision: of those that work, the first form of `PREFERRED`; None where none works."""
    working = {file["form"]: file for file in files if file["works"] and file["precision"] == precision}
    return next((working[form] for form in PREFERRED if form in working), None)


def _name_of(form: str) -> str:
    """The artifact's name in a run."""
    from pipeline.stages.quantize import NAMES

    return NAMES.get(form) or f"onnx-{form}"


def _on_cpu() -> list[dict[str, Any]]:
    """Without TensorRT: what the runtimes of a processor make of each file."""
    told = {
        "portable": "on OpenVINO; ONNX Runtime runs it no faster than fp32",
        "cpu": "on ONNX Runtime and OpenVINO",
        "fp16": "smaller, not faster",
        "fp32": "on every runtime",
    }
    precisions = {"portable": "int8", "cpu": "int8"}
    return [{"file": _name_of(form), "precision": precisions.get(form, form), "why": why} for form, why in told.items()]


def _python(text: str) -> tuple[int, ...]:
    first = (text or ".".join(map(str, OLDEST_PYTHON))).split()[0]
    return tuple(int(part) for part in first.split(".")[:2])


def show_target(found: dict[str, Any]) -> None:
    """For people: a row a release, then what to try."""
    from rich.text import Text

    shown = console()
    capability = f"; compute capability {found['compute_capability']}" if found["compute_capability"] else ""
    shown.print(Text(f"{found['name']}: {found['description']}{capability}"), soft_wrap=True)
    if found["power_modes"]:
        modes = ", ".join(found["power_modes"])
        shown.print(Text(f"power modes: {modes} (nvpmodel -q names the one in force)", "dim"), soft_wrap=True)
    shown.print(Text(f"runtimes to try: {', '.join(found['runtimes'])}", "dim"))
    if found["releases"]:
        precisions = list(found["precisions"])
        rows = table("system", "TensorRT", "Python", "opsets", *precisions)
        for release in found["releases"]:
            edition = "RTX " if release["edition"] == "tensorrt-rtx" else ""
            rows.add_row(
                release["name"],
                f"{edition}{release['version']}",
                release["python"],
                f"{release['opsets'][0]} to {release['opsets'][1]}",
                *(_cell(release["precisions"][precision]) for precision in precisions),
            )
        shown.print(rows)
        for release in found["releases"]:
            told = [release["typing"], *(text for text in (release["note"], release["why_not"]) if text)]
            shown.print(Text(f"{release['name']}: {'; '.join(told)}", "dim"), soft_wrap=True)
        for line in _refused(found["releases"]):
            shown.print(Text(line, "dim"), soft_wrap=True)
    else:
        rows = table("file", "precision", "runs")
        for file in found["files"]:
            rows.add_row(file["file"], file["precision"], Text(file["why"]))
        shown.print(rows)
    for line in found["hints"]:
        click.echo(f"- {line}")
    forms = dict.fromkeys(
        chosen["form"]
        for release in found["releases"]
        for chosen in release["precisions"].values()
        if chosen and chosen["precision"] == "int8"
    )
    if forms:
        click.echo(f"in the recipe: quantize.forms = [{', '.join(json.dumps(form) for form in forms)}]")
    say_next("edgestill init")


def _refused(releases: list[dict[str, Any]]) -> list[str]:
    """A line for each file and reason, with the systems that refuse it."""
    where: dict[tuple[str, str], list[str]] = {}
    for release in releases:
        for file in release["files"]:
            if not file["works"]:
                reason = file["why"].replace(f"{release['edition']} {release['version']}", "it")
                where.setdefault((file["file"], reason), []).append(release["name"])
    return [f"{file} is refused by {', '.join(names)}: {why}" for (file, why), names in where.items()]


def _cell(file: dict[str, Any] | None) -> Any:
    from rich.text import Text

    return Text("no", "red") if file is None else Text(f"{file['file']} (opset {file['opset']})", "green")
