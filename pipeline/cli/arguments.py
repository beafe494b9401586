"""Arguments that several commands share: input sizes, subjects, overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from exporters import IOSpec

Kind = Literal["onnx", "checkpoint", "model", "engine"]
WEIGHTS = (".pt", ".pth", ".th", ".bin", ".h5", ".ckpt")
OTHERS = (".tflite", ".xml")

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe, as distill.epochs=3."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """`1,3,224,224` or, for models with several inputs, `images=1,3,224,224`."""

    name: str
    shape: tuple[int, ...]


class InputShapeType(click.ParamType):
    name = "SHAPE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> InputShape:
        if isinstance(value, InputShape):
            return value
        name, _, sizes = str(value).rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            self.fail(f"got {value!r}; expected sizes such as 1,3,224,224", param, ctx)
        return InputShape(name=name.strip(), shape=shape)


input_option = click.option(
    "--input",
    "inputs",
    multiple=True,
    type=InputShapeType(),
    help="Input sizes, such as 1,3,224,224; NAME=1,3,224,224 where a model has several inputs.",
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What to inspect or profile. `runtime` is what stood after `@`, or empty."""

    text: str
    kind: Kind
    path: Path
    runtime: str = ""


def subject_of(text: str) -> Subject:
    """A model name, a checkpoint, an ONNX file or an engine, with an optional `@runtime`. Raises `UserError`."""
    from exporters import RUNTIMES
    from exporters.tensorrt_engine import SUFFIXES

    name, at, runtime = text.rpartition("@")
    if not at or runtime not in RUNTIMES:
        name, runtime = text, ""
    path = Path(name)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise UserError(f"{name}: a folder; give a model name, a checkpoint (.safetensors) or an .onnx file")
    if suffix in WEIGHTS and path.is_file():
        raise UserError(
            f"{name}: weights without an architecture; give the model's name, such as torchvision:resnet18, "
            "or the checkpoint (.safetensors) of a run"
        )
    if suffix in SUFFIXES:
        return Subject(text=text, kind="engine", path=path, runtime=engine_runtime(path, runtime))
    if suffix in OTHERS:
        raise UserError(f"{name}: {suffix} files cannot be read by this version; give the .onnx file it was made from")
    if suffix in (".onnx", ".safetensors"):
        if not path.is_file():
            raise UserError(f"{name}: no such file; give a model name, a checkpoint (.safetensors) or an .onnx file")
        return Subject(text=text, kind="onnx" if suffix == ".onnx" else "checkpoint", path=path, runtime=runtime)
    if path.is_file():
        # Any other name may still be an ONNX file; its parser says so when it is not.
        return Subject(text=text, kind="onnx", path=path, runtime=runtime)
    return Subject(text=name, kind="model", path=path, runtime=runtime)


def engine_runtime(path: Path, asked: str = "") -> str:
    """The edition that built the engine at `path`, which alone can load it; `UserError` for another after the `@`."""
    from exporters import ExportError
    from exporters.tensorrt_engine import read_sidecar

    try:
        edition = read_sidecar(path, check=False).edition
    except ExportError as error:
        raise UserError(str(error)) from None
    if asked not in ("", edition):
        raise UserError(f"{path}: built by {edition}, which {asked} cannot load; leave out @{asked}")
    return edition


def one_shape(inputs: Sequence[InputShape], subject: Subject) -> tuple[int, ...] | None:
    """The shape given for a torch model, which takes one input; None when none was given."""
    if len(inputs) > 1 or (inputs and inputs[0].name):
        raise UserError(f"{subject.text}: a model takes one input; give one --input without a name")
    return inputs[0].shape if inputs else None


def assumed_shape(model: str) -> tuple[int, ...]:
    """What a model by name is looked at with when no --input is given."""
    from pipeline.models import usual_side

    side = usual_side(model)
    return (1, 3, side, side)


def file_shapes(inputs: Sequence[InputShape], subject: Subject) -> dict[str, tuple[int, ...]] | None:
    """--input for an ONNX file or an engine as input name -> shape. Raises `UserError` where a name is needed."""
    if not inputs:
        return None
    path, specs = subject.path, specs_of(subject)
    if len(inputs) == 1 and not inputs[0].name and len(specs) == 1:
        return {specs[0].name: inputs[0].shape}
    if any(not given.name for given in inputs):
        names = ", ".join(f"--input {spec.name}={','.join(map(str, spec.shape))}" for spec in specs)
        raise UserError(f"{path}: has {len(specs)} inputs; name each shape: {names}")
    return {given.name: given.shape for given in inputs}


def specs_of(subject: Subject) -> tuple[IOSpec, ...]:
    """The inputs of an ONNX file, or of an engine as its sidecar has them."""
    if subject.kind == "engine":
        from exporters.tensorrt_engine import read_sidecar

        return read_sidecar(subject.path, check=False).inputs
    from exporters.artifact import input_specs

    return input_specs(subject.path)


def module_of(
    subject: Subject, shape: tuple[int, ...] | None, classes: int | None, *, empty: bool = False
) -> tuple[nn.Module, tuple[int, ...]]:
    """The torch module of a model name or checkpoint, and its input shape. Imports torch.

    `empty` builds a named model without bytes (on torch's meta device) where that is safe: counting needs none.
    """
    if subject.kind == "checkpoint":
        from pipeline.models.checkpoint import load_checkpoint

        module, meta = load_checkpoint(subject.path)
        return module, shape or (1, *meta.input_size)
    from pipeline.models import PRUNED, build, parse_name

    shape = shape or assumed_shape(subject.text)
    if len(shape) != 4:
        size = ",".join(map(str, shape))
        raise UserError(f"{subject.text}: --input {size} is not of the form batch,channels,height,width")
    import torch

    name = parse_name(subject.text)
    if name.source == PRUNED:
        size = (shape[1], shape[2], shape[3])
        return build(subject.text, num_classes=classes, in_channels=shape[1], input_size=size).eval(), shape
    # A builder of the user's own may look at its weights, so it gets real ones.
    if empty and name.source != "module":
        try:
            with torch.device("meta"):
                return build(subject.text, num_classes=classes, in_channels=shape[1]).eval(), shape
        except UserError as error:
            # RegNets read a number that they compute while they are built, which the meta device cannot give.
            if not isinstance(error.__cause__, NotImplementedError):
                raise
    return build(subject.text, num_classes=classes, in_channels=shape[1]).eval(), shape
