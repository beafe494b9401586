"""`edgestill store prune`: what a store holds that nothing recent needs, how much it is, and its removal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.arguments import json_option
from pipeline.cli.output import console, print_json, say_next, table
from pipeline.errors import RecipeError, UserError

if TYPE_CHECKING:
    from pipeline.prune import Holding


@click.group()
def store() -> None:
    """Look after a store: the folder that holds the results of runs."""


@store.command()
@click.argument("folder", metavar="[STORE]", type=click.Path(path_type=Path), default=Path("artifacts"))
@click.option("--keep", type=click.IntRange(min=1), default=1, show_default=True, help="Verdicts of a run to keep.")
@click.option("--interrupted", is_flag=True, help="Also what an interrupted run would go on with.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@json_option
def prune(folder: Path, keep: int, interrupted: bool, yes: bool, as_json: bool) -> None:
    """Remove from STORE (default: artifacts), or from the folder of one run, the stages that no published report and
    none of the newest verdicts was made from. Says what and how much, and asks first.

    A run that is in use, folders that edgestill did not make and files that it does not know are never touched. With
    --json and without --yes nothing is removed.
    """
    from pipeline.atomic import format_bytes
    from pipeline.prune import look, remove, runs

    found = [look(run, keep=keep, interrupted=interrupted) for run in runs(folder)]
    count, size = (
        sum(len(one.removable) for one in found),
        sum(entry.size_bytes for one in found for entry in one.removable),
    )
    if not as_json:
        show(found)
        if not count:
            click.echo(f"nothing to remove; {folder} holds {format_bytes(sum(one.size_bytes for one in found))}")
            return
        if not yes and not sys.stdin.isatty():
            raise RecipeError(f"{folder}: nobody to ask here; give --yes to remove {folders(count)}")
        if not yes and not click.confirm(f"remove {folders(count)}, {format_bytes(size)}?"):
            click.echo("nothing was removed")
            return
    freed, in_use = 0, []
    for one in found if yes or not as_json else ():
        try:
            freed += remove(one) if one.removable else 0
        except UserError as error:
            in_use.append(str(error))
    if as_json:
        print_json(as_table(folder, found) | {"removed": yes, "freed_bytes": freed, "skipped": in_use})
    else:
        click.echo(f"removed {format_bytes(freed)}")
    if in_use:
        raise UserError("; ".join(in_use))
    if not as_json:
        say_next(f"edgestill compare {folder}" if len(found) > 1 else f"edgestill verify {found[0].folder}")


def show(found: list[Holding]) -> None:
    from pipeline.quantities import show as shown

    rows = table("run", "folder", "why", "made", "size", right=("size",))
    for one in found:
        for entry in one.removable:
            made = entry.created.replace("T", " ")[:16]
            rows.add_row(one.folder.name, entry.path.name, entry.why, made, shown(entry.size_bytes, "bytes"))
        for line in one.left:
            click.echo(f"note: {one.folder.name}: {line}", err=True)
    if rows.row_count:
        console().print(rows)


def as_table(folder: Path, found: list[Holding]) -> dict[str, object]:
    return {
        "store": str(folder),
        "size_bytes": sum(one.size_bytes for one in found),
        "removable_bytes": sum(entry.size_bytes for one in found for entry in one.removable),
        "runs": [
            {
                "folder": str(one.folder),
                "size_bytes": one.size_bytes,
                "removable": [
                    {"folder": entry.path.name, "stage": entry.stage, "why": entry.why}
                    | {"size_bytes": entry.size_bytes, "created": entry.created or None}
                    for entry in one.removable
                ],
                "left": list(one.left),
            }
            for one in found
        ],
    }


def folders(count: int) -> str:
    return f"{count} folder{'s' * (count != 1)}"
