"""`edgestill run` and `edgestill plan`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from pipeline.cli.arguments import json_option, set_option
from pipeline.cli.output import console, print_json, say_next, table
from pipeline.errors import EXIT_REFUSED, EXIT_RELEASED, EXIT_UNDECIDED

VERDICT_CODES = {"released": EXIT_RELEASED, "refused": EXIT_REFUSED, "undecided": EXIT_UNDECIDED}
STYLES = {"fresh": "green", "stale": "yellow", "missing": "red", "unknown": "dim"}

out_option = click.option(
    "--out", default="artifacts", show_default=True, metavar="DIR", help="The store: results lie in DIR/RECIPE_NAME."
)
smoke_option = click.option("--smoke", is_flag=True, help="The shape of the recipe on digits, in seconds.")


@click.command()
@click.argument("recipe")
@out_option
@set_option
@smoke_option
@json_option
@click.pass_context
def run(ctx: click.Context, recipe: str, out: str, overrides: tuple[str, ...], smoke: bool, as_json: bool) -> None:
    """Run the whole chain of RECIPE, a .toml file or the name of a shipped recipe.

    Stages whose inputs have not changed are reused. A killed or interrupted run is resumed by the same command. Exits
    with 0 when the artifact was released, 3 when a gate refused it, 4 when the measurements cannot tell.

    Several GPUs, or machines that share DIR: torchrun --nproc-per-node N -m pipeline run RECIPE. Each of N processes
    trains on an equal share of every batch; the rest is done by the first one.
    """
    import pipeline
    from pipeline.recipe_file import check_files, load_recipe

    check_files(load_recipe(recipe, overrides, smoke=smoke))
    report = pipeline.run(recipe, out=out, overrides=overrides, smoke=smoke)
    if as_json:
        print_json(report)
    else:
        from pipeline.reports.report import print_ledger

        print_ledger(report, console(), folder=Path(out) / report["recipe"]["name"])
    ctx.exit(VERDICT_CODES[report["verdict"]])


@click.command()
@click.argument("recipe")
@out_option
@set_option
@smoke_option
@json_option
def plan(recipe: str, out: str, overrides: tuple[str, ...], smoke: bool, as_json: bool) -> None:
    """Say of each stage of RECIPE whether it is fresh, and if not, why it would run. Computes nothing."""
    from pipeline import chain
    from pipeline.quantities import show

    stages = chain.plan(recipe, out=out, overrides=overrides, smoke=smoke)
    if as_json:
        print_json(
            [
                {
                    "stage": row.stage,
                    "state": row.state,
                    "reasons": list(row.reasons),
                    "folder": None if row.folder is None else str(row.folder),
                    "seconds": row.seconds,
                }
                for row in stages
            ]
        )
        return
    from rich.text import Text

    shown = table("stage", "state", "last took", "why", right=("last took",))
    for row in stages:
        state = Text(row.state, style=STYLES[row.state])
        shown.add_row(row.stage, state, show(row.seconds, "s"), Text("; ".join(row.reasons)))
    console().print(shown)
    words = [word for override in overrides for word in ("--set", override)]
    words += [*(["--smoke"] if smoke else []), *(["--out", out] if out != "artifacts" else [])]
    work = sum(row.state != "fresh" for row in stages)
    click.echo(f"{work} of {len(stages)} stages would run" if work else "every stage is fresh")
    say_next(shlex.join(["edgestill", "run", recipe, *words]))
