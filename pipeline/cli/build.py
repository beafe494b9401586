"""`edgestill build`: an ONNX file to a TensorRT engine and its sidecar, on the device itself or ahead of time."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Literal

import click

from pipeline.cli.arguments import InputShape, InputShapeType, Subject, file_shapes, input_option, json_option
from pipeline.cli.output import print_json, say_next
from pipeline.errors import UserError

EDITIONS = ("tensorrt", "tensorrt-rtx")
COMPATIBLE = ("version", "ampere_plus", "same_compute_capability")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


class Bytes(click.ParamType):
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower())
        size = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
        return size or self.fail(f"got {value!r}; expected a size such as 512MiB or 1GiB", param, ctx)


class Capability(click.ParamType):
    """`8.9` or `SM89`, as TensorRT names it: `SM89`."""

    name = "CC"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        found = re.fullmatch(r"(?:sm)?(\d+)\.?(\d)", str(value).strip().lower())
        if found is None:
            self.fail(f"got {value!r}; expected a compute capability such as 8.9", param, ctx)
        return f"SM{found[1]}{found[2]}"


class Bounds(click.ParamType):
    """`[NAME=]SMALLEST/BEST/LARGEST` as (name or "", three shapes)."""

    name = "SHAPES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        name, _, sizes = str(value).rpartition("=")
        parts = sizes.split("/")
        if len(parts) != 3:
            told = "expected smallest, best and largest, such as 1,3,32,32/4,3,32,32/8,3,32,32"
            self.fail(f"got {value!r}; {told}", param, ctx)
        kind = InputShapeType()
        return name.strip(), tuple(kind.convert(part, param, ctx).shape for part in parts)


@click.command()
@click.argument("model", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "edition",
    required=True,
    type=click.Choice(EDITIONS),
    help="tensorrt: for the GPU of this machine. tensorrt-rtx: laptop and desktop RTX, also without a GPU here.",
)
@click.option("--cc", multiple=True, type=Capability(), help="tensorrt-rtx: a compute capability, as 8.9; repeatable.")
@input_option
@click.option(
    "--shapes",
    multiple=True,
    type=Bounds(),
    help="Leave open sizes open, from SMALLEST/BEST/LARGEST: 1,3,32,32/4,3,32,32/8,3,32,32, NAME= before where needed.",
)
@click.option("--workspace", type=Bytes(), help="The most GPU memory for the engine's scratch, such as 512MiB.")
@click.option(
    "--timing-cache", type=click.Path(path_type=Path), help="tensorrt: timings to begin with, brought up to date."
)
@click.option(
    "--compatible",
    multiple=True,
    type=click.Choice(COMPATIBLE),
    help="tensorrt: also for later versions or for other GPUs, at the cost of speed; repeatable.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Without, the file's own; 8.6 makes fp16 of fp32.")
@click.option("--tf32", is_flag=True, help="Let fp32 products round to 10 bits.")
@click.option("--out", type=click.Path(path_type=Path), help="The engine to write; without, FILE's name.engine here.")
@json_option
def build(
    model: Path,
    edition: Literal["tensorrt", "tensorrt-rtx"],
    cc: tuple[str, ...],
    inputs: tuple[InputShape, ...],
    shapes: tuple[Any, ...],
    workspace: int | None,
    timing_cache: Path | None,
    compatible: tuple[str, ...],
    precision: str | None,
    tf32: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Build FILE, an ONNX file, into a TensorRT engine, with a sidecar FILE.engine.json that says what is in it.

    What was asked for is compared with what TensorRT made of it, and an engine in another precision is not written.
    'edgestill profile' builds engines by itself; this is for those that are built ahead of time or with other options.
    """
    from exporters.artifact import ExportError
    from exporters.tensorrt_api import edition_of
    from exporters.tensorrt_options import BuildOptions
    from exporters.to_tensorrt import TensorRtExporter, TensorRtRtxExporter, build_engine
    from pipeline.cli.inspect_engine import of_engine, show_engine

    out = _place(model, out)
    exporter = TensorRtExporter() if edition == "tensorrt" else TensorRtRtxExporter()
    if reason := exporter.unavailable():
        raise UserError(f"--for {edition}: {reason}")
    levels = [name for name in compatible if name != "version"]
    if len(levels) > 1:
        raise UserError(f"--compatible: got {' and '.join(levels)}; give one of the two")
    try:
        options = BuildOptions(
            shapes=file_shapes(inputs, Subject(text=str(model), kind="onnx", path=model)),
            profiles=_profiles(shapes),
            compute_capabilities=cc,
            workspace_bytes=workspace,
            timing_cache=timing_cache,
            version_compatible="version" in compatible,
            hardware_compatibility=levels[0] if levels else None,
            tf32=tf32,
            strict=edition == "tensorrt-rtx",  # on a device most warnings are about the machine: notes in the sidecar
        )
        build_engine(model, out, edition=edition_of(edition), precision=precision, options=options)
    except ExportError as error:  # as it stands: also where TensorRT ran out of memory, it says what to lower
        raise UserError(str(error)) from error
    found = of_engine(out)
    if as_json:
        print_json(found)
        return
    show_engine(found)
    _say_where_it_runs(edition, out)


def _place(model: Path, out: Path | None) -> Path:
    """Where the engine goes; `UserError` for what is no ONNX file, and for a place that is taken."""
    from exporters.tensorrt_engine import SUFFIXES, sidecar_path

    if model.suffix.lower() in SUFFIXES:
        raise UserError(f"{model}: is an engine already; give the .onnx file that it was made from")
    out = out or Path(f"{model.stem}.engine")
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out: got {out}; give it one of the endings {', '.join(SUFFIXES)}")
    if out.exists() and not sidecar_path(out).is_file():
        raise UserError(f"{out}: is there already and was not built by edgestill; give another --out, or remove it")
    return out


def _profiles(shapes: tuple[Any, ...]) -> Any:
    """`--shapes` as `BuildOptions` has them; one without a name is for the only input."""
    if not shapes:
        return None
    if len(shapes) == 1 and not shapes[0][0]:
        return shapes[0][1]
    if any(not name for name, _ in shapes):
        raise UserError("--shapes: given more than once; name the input of each, such as images=1,3,32,32/...")
    return dict(shapes)


def _say_where_it_runs(edition: str, out: Path) -> None:
    from exporters import unavailable

    if unavailable(edition, "cuda:0"):
        click.echo(f"take {out} and {out.name}.json together to the machine with the GPU; there:")
    say_next(shlex.join(["edgestill", "profile", str(out)]))
