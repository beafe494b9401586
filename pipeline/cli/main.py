"""The command `edgestill`: finds the subcommand, turns every error into one line and an exit code.

A subcommand is imported when it is called, so that `edgestill --help` imports click alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from pipeline.errors import (
    EXIT_BAD_RECIPE,
    EXIT_COULD_NOT_RUN,
    EXIT_INTERRUPTED,
    UserError,
    nearest,
)
from pipeline.memory import advice, out_of_memory
from pipeline.registry import load

# name -> (command, its line in --help), in the order of a first day with edgestill
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("pipeline.cli.run:run", "The whole chain, from a recipe to a verdict; fresh stages are reused."),
    "plan": ("pipeline.cli.run:plan", "Each stage of a recipe, fresh or stale, and why."),
    "list": ("pipeline.cli.catalogue:list_", "What there is, and what is unavailable here and why."),
    "init": ("pipeline.cli.starter:init", "Write a commented recipe for your own teacher and images."),
    "doctor": ("pipeline.cli.doctor:doctor", "What this machine can train, export and run."),
    "inspect": ("pipeline.cli.inspect:inspect", "Parameters, MACs, size and precision of a model or file."),
    "predict": ("pipeline.cli.predict:predict", "Labels and probabilities for a folder of images, without torch."),
    "quantize": ("pipeline.cli.quantize:quantize", "Any ONNX file to fp16 and int8, and a bundle that judges it."),
    "build": ("pipeline.cli.build:build", "An ONNX file to a TensorRT engine, here or ahead of time."),
    "profile": ("pipeline.cli.profile:profile", "Latency, throughput and memory on this machine, side by side."),
    "compare": ("pipeline.cli.compare:compare", "One table and one Pareto picture over runs."),
    "sweep": ("pipeline.cli.sweep:sweep", "A recipe over a grid of settings and seeds: many runs, one table."),
    "gate": ("pipeline.cli.verdict:gate", "The verdict again, from the recorded measurements."),
    "report": ("pipeline.cli.verdict:report", "Render report.md and report.html from report.json."),
    "bundle": ("pipeline.cli.bundle:bundle", "One file with all that a device needs to measure and judge a run."),
    "verify": ("pipeline.cli.verify:verify", "Is a run or bundle as it was written, and does its verdict follow?"),
    "store": ("pipeline.cli.store:store", "What the store holds that nothing recent needs, and its removal."),
}

# what a missing import is installed with
EXTRAS = {
    "onnxruntime": "ort",
    "openvino": "openvino",
    **dict.fromkeys(("torch", "torchvision", "safetensors", "sklearn", "scipy", "PIL"), "train"),
    "onnxscript": "train",
}


class LazyGroup(click.Group):
    """A group whose commands stand in `COMMANDS` and are imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(COMMANDS[cmd_name][0]) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no such command {args[0]!r}{nearest(args[0], list(COMMANDS))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"edgestill {version('edgestill')}")
        except PackageNotFoundError:
            click.echo("edgestill, not installed: run from its source")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 released or done, 1 could not run, 2 bad command line or recipe, 3 refused, 4 undecided. "
    "Begin with: edgestill run digits",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error; anywhere on the line.")
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
def group() -> None:
    """Distil, quantize, export, profile and gate image models for devices: from a teacher to a verdict."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line (default: `sys.argv`) and exit with its code."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        code = group.main(args, prog_name="edgestill", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; run the same command again to resume", err=True)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # `edgestill list | head`: the reader had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_COULD_NOT_RUN
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exception(error)
        message, code = explain(error)
        for line in message.splitlines():
            click.echo(f"error: {line}", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def explain(error: Exception) -> tuple[str, int]:
    """The line that the user sees, and the exit code."""
    if isinstance(error, click.ClickException):
        return _usage(error), EXIT_BAD_RECIPE
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").partition(".")[0]) in EXTRAS:
        return f"{package} is not installed; pip install 'edgestill[{EXTRAS[package]}]'", EXIT_COULD_NOT_RUN
    if out_of_memory(error):
        return advice(), EXIT_COULD_NOT_RUN
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; look at the path, its permissions and the disk", EXIT_COULD_NOT_RUN
    if type(error).__module__.partition(".")[0] in ("exporters", "profiles"):
        return str(error), EXIT_COULD_NOT_RUN
    first = (str(error).strip().splitlines() or ["no message"])[0]
    kind = type(error).__name__
    return f"{kind}: {first} (a fault of edgestill; --debug shows the traceback)", EXIT_COULD_NOT_RUN


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.NoSuchOption):  # click words it differently from version to version
        options = [name for option in context.command.params for name in option.opts] if context else []
        message = f"no such option {error.option_name!r}{nearest(error.option_name, options)}"
    else:
        message = error.format_message().strip().rstrip(".")
    message = message[:1].lower() + message[1:]
    return f"{message} (see '{context.command_path if context else 'edgestill'} --help')"
