"""`edgestill bundle`, and `edgestill profile` where its subject is a bundle."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from pipeline.cli.arguments import WEIGHTS, json_option
from pipeline.cli.output import console, print_json, say_next
from pipeline.errors import UserError

# options of `profile` that ask for something else than a bundle holds
NOT_OF_A_BUNDLE = {"against": "--against", "inputs": "--input", "classes": "--classes", "kind": "--kind"}
NOT_OF_A_BUNDLE |= {name: f"--{name.replace('_', '-')}" for name in ("minutes", "deadline_ms", "batches", "layers")}
# option -> setting of the recipe's [profile], which holds where the option is not given
SETTINGS = {"device": "device", "runtimes": "runtimes", "threads": "threads", "seconds": "min_seconds"}
SETTINGS |= {"blocks": "blocks"}


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The file to write; without, RECIPE.edgestill.zip here.")
@click.option("--sign", "key", metavar="KEY", type=click.Path(path_type=Path), help="Sign with this SSH key.")
@click.option("--without-teacher", is_flag=True, help="Smaller; speed rules against the teacher stay undecided there.")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="At most so many images of each split.")
@json_option
def bundle(
    run: Path, out: Path | None, key: Path | None, without_teacher: bool, samples: int | None, as_json: bool
) -> None:
    """Pack RUN, the folder of a run, into one file for a device: its ONNX files, OpenVINO's own and the teacher's,
    preprocessing, class names, gate rules, report, and the test and validation images with what the teacher answered.

    The images lie in the file as they are: pass it on only where they may go. The same run gives the same bytes.
    """
    from pipeline.bundle.pack import pack
    from pipeline.quantities import show

    packed = pack(
        run,
        out,
        key=key,
        teacher=not without_teacher,
        samples=samples,
        say=lambda line: None if as_json else click.echo(line, err=True),
    )
    if as_json:
        print_json(
            {
                "bundle": str(packed.path),
                "size_bytes": packed.size_bytes,
                "files": packed.files,
                "manifest_sha256": packed.manifest_sha256,
                "models": list(packed.models),
                "samples": packed.samples,
                "signed": key is not None,
            }
        )
        return
    click.echo(f"wrote {packed.path}: {', '.join(packed.models)}; {show(packed.size_bytes, 'bytes')}")
    click.echo(f"manifest sha256 {packed.manifest_sha256}" + (", signed" if key else ""))
    say_next(shlex.join(["edgestill", "verify", str(packed.path)]))


def is_bundle(text: str) -> bool:
    """Whether `text` names a zip that is no file of weights (PyTorch's are zips too)."""
    path = Path(text)
    if not path.is_file() or path.suffix.lower() in WEIGHTS:
        return False
    with path.open("rb") as file:
        return path.suffix.lower() == ".zip" or file.read(4) == b"PK\x03\x04"


def profile_bundle(ctx: click.Context) -> None:
    """`edgestill profile BUNDLE`: the record of this machine, in a folder of its own, and its verdict.

    Where an option is not given, the recipe of the bundle says it; the device is the GPU where one can be used.
    """
    from pipeline.bundle.contents import unpacked
    from pipeline.bundle.device import measure
    from pipeline.reports.report import print_ledger

    options = ctx.params
    if len(options["subjects"]) > 1:
        raise UserError(f"{' '.join(options['subjects'])}: a bundle is measured alone; name it and nothing else")
    given = {name for name in options if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    path = Path(options["subjects"][0])
    if odd := [flag for name, flag in NOT_OF_A_BUNDLE.items() if name in given]:
        raise UserError(f"{path}: {odd[0]} is not for a bundle, which says that itself; leave it out")
    settings = {SETTINGS[name]: options[name] for name in SETTINGS if name in given}
    with unpacked(path) as opened:
        out = options["out"] or Path(f"{opened.manifest.recipe}-record")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: is there already; give another --out, or remove it")
        words = [word for name in sorted(given - {"subjects", "out", "as_json"}) for word in told(name, options[name])]
        record = measure(
            opened,
            out,
            settings,
            command=shlex.join(["edgestill", "profile", path.name, *words]),
            memory=options["memory"],
            say=lambda line: click.echo(line, err=True),
        )
    if options["as_json"]:
        print_json(record)
        return
    print_ledger(record, console(), folder=out, following=shlex.join(["edgestill", "gate", str(out)]))


def told(name: str, value: Any) -> list[str]:
    """An option as it stands on the command line."""
    if name == "memory":
        return ["--memory" if value else "--no-memory"]
    if name == "runtimes":
        return [word for runtime in value for word in ("--runtime", runtime)]
    return [f"--{name}", str(value)]
