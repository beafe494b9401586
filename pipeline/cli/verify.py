"""`edgestill verify`: is every byte as it was written, and does the verdict follow from the recorded samples?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.arguments import json_option
from pipeline.cli.output import print_json, say_next
from pipeline.cli.run import VERDICT_CODES
from pipeline.errors import EXIT_COULD_NOT_RUN, UserError

if TYPE_CHECKING:
    from pipeline.bundle.verify import Verified

SHOWN = 20  # changes told to people; --json has all of them


@click.command()
@click.argument("subject", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--signers",
    type=click.Path(path_type=Path),
    help="Who may have signed a bundle: lines 'NAME ssh-ed25519 AAAA...', as ssh-keygen -Y verify takes them.",
)
@json_option
@click.pass_context
def verify(ctx: click.Context, subject: Path, signers: Path | None, as_json: bool) -> None:
    """Hash every file of RUN and judge it again from its recorded samples. RUN is the folder of a run, wherever it was
    copied to, a bundle, or the record of a device.

    Exits as the gate does (0 released, 3 refused, 4 undecided) when every byte is as it was written, the samples give
    the recorded figures and verdict (and, with --signers, one of them signed it); with 1 otherwise.
    """
    from pipeline.bundle.verify import verify_bundle
    from pipeline.bundle.verify_run import verify_run

    if not subject.exists():
        raise UserError(f"{subject}: no such file; give a bundle or the folder of a run")
    if subject.is_dir() and signers is not None:
        raise UserError(f"{subject}: a run is not signed, its bundle is; leave out --signers")
    found = verify_run(subject) if subject.is_dir() else verify_bundle(subject, signers)
    if as_json:
        print_json(as_table(subject, found))
    else:
        show_verified(subject, found, signers)
    if found.changes:
        ctx.exit(EXIT_COULD_NOT_RUN)
    ctx.exit(VERDICT_CODES[found.judged.verdict] if found.judged else 0)


def as_table(subject: Path, found: Verified) -> dict[str, Any]:
    judged = found.judged
    return {
        "subject": str(subject),
        "whole": not found.changes,
        "files": found.files,
        "size_bytes": found.size_bytes,
        "changes": [
            {"file": change.file, "what": change.what, "expected": change.expected, "got": change.got}
            for change in found.changes
        ],
        "signed": found.signed,
        "trusted": found.trusted,
        "verdict": judged.verdict if judged else None,
        "recorded": judged.recorded if judged else None,
        "gates": judged.gates if judged else None,
        "samples": judged.samples if judged else None,
        "taken": list(judged.taken) if judged else None,
    }


def show_verified(subject: Path, found: Verified, signers: Path | None) -> None:
    from pipeline.quantities import show

    for change in found.changes[:SHOWN]:
        click.echo(f"error: {change}", err=True)
    if len(found.changes) > SHOWN:
        click.echo(f"error: and {len(found.changes) - SHOWN} more; --json lists them", err=True)
    if found.signed:
        click.echo(
            found.signed + ("" if found.trusted or signers else "; --signers FILE says whether you know that key")
        )
    elif not subject.is_dir():
        click.echo("not signed")
    if found.changes:
        many = len({change.file for change in found.changes})
        click.echo(f"CHANGED  {many} of {found.files} files are not as they were written")
        return
    click.echo(f"whole: {found.files} files of {show(found.size_bytes, 'bytes')} are as they were written")
    if found.judged:
        of = f"{found.judged.samples} files of samples" if found.judged.samples else "the figures of its report alone"
        click.echo(f"judged again from {of}: {found.judged.verdict.upper()}  {found.judged.sentence}")
        if found.judged.taken:
            many = len(found.judged.taken)
            click.echo(
                f"taken as recorded: {', '.join(found.judged.taken[:3])}{f' and {many - 3} more' if many > 3 else ''}"
            )
    then = "profile" if not subject.is_dir() else "gate" if found.of_device else "bundle"
    say_next(shlex.join(["edgestill", then, str(subject)]))
