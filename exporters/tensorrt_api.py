"""TensorRT in three editions behind one face: 8.6, 10.x and 11.x (`tensorrt`), and TensorRT-RTX (`tensorrt_rtx`).

What an edition can do is asked of its module, never read from its version: 8.6 takes its precision from builder flags,
10.x has both those and strong typing, 11.x and RTX are always strongly typed and have no such flags. Enumerations were
renumbered in 11, so that everything goes by name, and no number of theirs is ever stored.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from exporters.artifact import ExportError
from exporters.base import missing_package

# The runtimes of the table, and what each imports.
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

# "flags": precision by builder flags (8.6). "opt-in": strongly typed when the network is asked to be (10.x).
# "always": strongly typed, whatever is asked (11.x, RTX).
Typing = Literal["flags", "opt-in", "always"]
SEVERE = ("INTERNAL_ERROR", "ERROR", "WARNING")


@dataclass(frozen=True, kw_only=True)
class Edition:
    """An installed TensorRT. `ahead_of_time`: it builds without a GPU, for the compute capabilities it is told."""

    name: str
    module: Any = field(repr=False, compare=False)
    version: str
    typing: Typing
    ahead_of_time: bool

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def edition_of(name: str) -> Edition:
    """The installed edition that the runtime `name` uses. Imports it; a missing one is an `ExportError`."""
    package = MODULES[name]
    if reason := missing_package(package, name):
        raise ExportError(f"{name}: {reason}")
    try:
        module = importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise ExportError(f"{name}: {package} cannot be loaded ({error}); reinstall it with its libraries") from error
    return probe(name, module)


def probe(name: str, module: Any) -> Edition:
    """What `module` can do, by what it has."""
    typing: Typing = "always"
    if has(module, "BuilderFlag", "FP16"):
        typing = "opt-in" if has(module, "NetworkDefinitionCreationFlag", "STRONGLY_TYPED") else "flags"
    return Edition(
        name=name,
        module=module,
        version=module.__version__,
        typing=typing,
        ahead_of_time=hasattr(module, "ComputeCapability"),
    )


def has(module: Any, enumeration: str, member: str) -> bool:
    """Whether an enumeration is there and has this member."""
    return hasattr(getattr(module, enumeration, None), member)


def members(enumeration: Any) -> tuple[str, ...]:
    """The names in one of TensorRT's enumerations; none where there is no such enumeration."""
    return tuple(getattr(enumeration, "__members__", ()))


def version_number(version: str) -> tuple[int, int]:
    """(10, 3) of "10.3.0.26"."""
    major, minor, *_ = (*version.split("."), "0")
    return int(major), int(minor)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """One logger and one builder a process: TensorRT keeps the first logger, and warns about every further one."""

    lines: list[tuple[str, str]]
    logger: Any
    builder: Any

    @contextmanager
    def listening(self) -> Iterator[list[tuple[str, str]]]:
        """(severity, line) of warnings and errors, from here on."""
        self.lines.clear()
        yield self.lines


def tools_of(edition: Edition) -> Tools:
    """The logger and builder of this edition, made once. On `tensorrt` itself the builder needs a GPU."""
    return _tools(edition.module)


def logger_of(edition: Edition) -> tuple[Any, list[tuple[str, str]]]:
    """The logger and the list that it writes to, for those who only run engines."""
    return _logger(edition.module)


@functools.cache
def _logger(module: Any) -> tuple[Any, list[tuple[str, str]]]:
    lines: list[tuple[str, str]] = []

    class Log(module.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity.name in SEVERE:
                lines.append((severity.name, message))

    return Log(), lines


@functools.cache
def _tools(module: Any) -> Tools:
    logger, lines = _logger(module)
    lines.clear()
    builder = module.Builder(logger)
    if builder is None:
        raise ExportError(f"{module.__name__}: no builder ({said(lines)}); look at the driver with nvidia-smi")
    return Tools(lines=lines, logger=logger, builder=builder)


def said(lines: list[tuple[str, str]]) -> str:
    """What a failure should quote: the first error, else the first warning, on one line."""
    chosen = next((line for severity, line in lines if severity != "WARNING"), lines[0][1] if lines else "")
    return one_line(chosen) or "it gave no reason"


def one_line(text: str, most: int = 300) -> str:
    """The text with its line breaks made spaces, cut where it goes on for long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 3] + "..."
