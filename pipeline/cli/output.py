"""What commands print: JSON for programs, tables for people, and the next useful command."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import reading

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH_OF_A_FILE = 160


def reads(argument: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For a command that reads a report named by `argument`: a damaged one is one line, wherever it is noticed."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def reading_it(*args: Any, **named: Any) -> Any:
            given = named[argument]
            with reading(" ".join(map(str, given)) if isinstance(given, tuple) else given):
                return command(*args, **named)

        return reading_it

    return decorate


def console() -> Console:
    """Standard output. What is not a terminal is wide, so that nothing is cut in a log."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE, highlight=False, soft_wrap=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A plain table with a header, columns left unless named in `right`."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def say_next(command: str) -> None:
    """The last line of a command for people."""
    click.echo(f"next: {command}")


def plain(value: Any) -> Any:
    """`value` without NumPy numbers and tuples, ready for JSON; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
