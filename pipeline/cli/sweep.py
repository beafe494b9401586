"""`edgestill sweep`: many runs over a grid of settings, one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.arguments import json_option, set_option
from pipeline.cli.output import console, plain, print_json, say_next, table
from pipeline.cli.run import VERDICT_CODES, out_option, smoke_option
from pipeline.errors import EXIT_COULD_NOT_RUN, EXIT_RELEASED

if TYPE_CHECKING:
    from rich.text import Text

COLOURS = {"released": "green", "refused": "red", "undecided": "yellow"}
assert set(COLOURS) == set(VERDICT_CODES)


@click.command()
@click.argument("recipe")
@click.option(
    "--grid",
    "grid",
    multiple=True,
    metavar="KEY=A,B,C",
    help="A key of the recipe and its values, as --set takes them; several make every combination. Takes the place of "
    "the recipe's [sweep] grid and runs.",
)
@click.option(
    "--repeats", type=int, metavar="N", help="Seeds a point: seed, seed+1, ... for the student and its control."
)
@click.option("--only", "only", multiple=True, metavar="NAME,...", help="Only these points, by name or named run.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray trains side by side on a Ray cluster, one GPU a training where there are GPUs.",
)
@out_option
@set_option
@smoke_option
@json_option
@click.pass_context
def sweep(
    ctx: click.Context,
    recipe: str,
    grid: tuple[str, ...],
    repeats: int | None,
    only: tuple[str, ...],
    engine: str,
    out: str,
    overrides: tuple[str, ...],
    smoke: bool,
    as_json: bool,
) -> None:
    """Run RECIPE at every point of a grid and put the results into one table.

    Points share the teacher, its table, the control and whatever else is the same for them. A killed or interrupted
    sweep goes on with the same command. The table is in the terminal, in DIR/RECIPE_NAME/sweep/sweep.json and
    sweep.html; each point has its own report beside them. A sweep compares and does not gate: it exits with 0 when
    all points ran, whatever their verdicts, and with 1 when one of them could not run.
    """
    from pipeline.sweeps.run import FOLDER
    from pipeline.sweeps.run import sweep as run_sweep

    found = run_sweep(
        recipe,
        grid=grid,
        repeats=repeats,
        only=[name.strip() for text in only for name in text.split(",")],
        engine="ray" if engine == "ray" else "local",
        out=out,
        overrides=overrides,
        smoke=smoke,
    )
    folder = Path(out) / found["recipe"] / FOLDER
    if as_json:
        print_json(plain(found))
    else:
        show(found, folder)
    failed = any(row["status"] == "failed" for row in found["points"])
    ctx.exit(EXIT_COULD_NOT_RUN if failed else EXIT_RELEASED)


NUMBERS = ("accuracy", "gain", "params", "MACs", "size", "s/epoch", "time", "teacher", "peak RAM")


def show(found: Mapping[str, Any], folder: Path) -> None:
    """The table, what could not run, and where the pages lie."""
    from rich.text import Text

    from pipeline.quantities import show as text_of
    from pipeline.sweeps.run import PAGE
    from pipeline.sweeps.table import best

    first = best(found["points"])
    made = table("point", *NUMBERS, "verdict", right=NUMBERS)
    for row in found["points"]:
        verdict = Text(row["verdict"] or row["status"], COLOURS.get(row["verdict"], "red"))
        name = Text(f"{row['name']} \u2605" if row is first else row["name"])
        made.add_row(name, *cells(row), verdict, style="bold" if row is first else "")
    shown = console()
    shown.print(made)
    done = [row for row in found["points"] if row["status"] == "done"]
    seeds = sorted({len(row["seeds"]) for row in done})
    if done:
        several = (
            "mean \u00b1 standard deviation over seeds, below it the 95 % interval" if seeds[-1] > 1 else "one seed"
        )
        click.echo(f"{several}; params, MACs and size: teacher over student; teacher: its share of training time")
    if seeds == [1]:
        click.echo("note: one seed has no deviation and no interval; --repeats 3 has")
    if found["saved_s"] > 0:
        click.echo(f"stages that points share saved {text_of(found['saved_s'], 's')}")
    for row in found["points"]:
        if row["status"] == "failed":
            shown.print(Text.assemble((f"{row['name']}: ", "bold"), ("failed: ", "red"), row["why"]), soft_wrap=True)
    click.echo(f"table: {folder / PAGE}")
    reports = [str(folder / row["slug"]) for row in done]
    say_next(f"edgestill compare {' '.join(reports[:4])}" if len(reports) > 1 else found["command"])


def cells(row: Mapping[str, Any]) -> Sequence[str | Text]:
    """The figures of a row as text; a dash where there is none."""
    from pipeline.quantities import ABSENT, show
    from pipeline.reports.task_words import words_of

    if row["status"] != "done":
        return [ABSENT] * len(NUMBERS)
    smaller, words = row["compression"], words_of(row)
    share = row["teacher_share"]
    gpu = f"\nGPU {show(row['peak_cuda_bytes'], 'bytes')}" if row["peak_cuda_bytes"] else ""
    return (
        spread(row["accuracy"], percent=True, unit=words.show),
        spread(row["gain_pt"], percent=False, unit=words.unit),
        show(smaller["params"], "x"),
        show(smaller["macs"], "x"),
        show(smaller["bytes"], "x"),
        show(row["s_per_epoch"], "s"),
        show(row["total_s"], "s"),
        ABSENT if share is None else f"{100 * share:.0f} %",
        show(row["peak_memory_bytes"], "bytes") + gpu,
    )


def spread(found: Mapping[str, Any] | None, *, percent: bool, unit: str = "") -> str:
    """`81.23 ± 0.21 %` above `80.71 to 81.75`, or the like with signs in points; `dB` and others stay as they are."""
    from pipeline.quantities import ABSENT

    if found is None:
        return ABSENT
    known = {"fraction": (100, "%"), "": (100, "%") if percent else (1, "pt")}
    (scale, unit), sign = known.get(unit, (1, unit)), "" if percent else "+"
    mean = f"{scale * found['mean']:{sign}.2f}"
    if found["std"] is None:
        return f"{mean} {unit}"
    low, high = (f"{scale * end:{sign}.2f}" for end in found["ci95"])
    return f"{mean} \u00b1 {scale * found['std']:.2f} {unit}\n{low} to {high}"
