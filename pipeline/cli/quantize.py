"""`edgestill quantize`: any ONNX file of an image network to fp16 and int8, and to a bundle that judges the loss."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from pipeline.cli.arguments import InputShape, Subject, file_shapes, input_option, json_option
from pipeline.cli.output import console, print_json, say_next, table
from pipeline.errors import UserError

FORMS = ("portable", "cpu", "gpu", "trt86", "nncf", "nncf-mixed")
METHODS = ("minmax", "entropy", "percentile")


class Numbers(click.ParamType):
    name = "NUMBERS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"got {value!r}; expected a number a channel, such as 0.485,0.456,0.406", param, ctx)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    help="Real images to calibrate on; in class folders, in the order of the outputs, they judge the result too.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write; without, MODEL-int8 here.")
@click.option("--mean", type=Numbers(), help="Of each channel on the scale 0 to 1, as 0.485,0.456,0.406.")
@click.option("--std", type=Numbers(), help="Of each channel on the scale 0 to 1, as 0.229,0.224,0.225.")
@input_option
@click.option(
    "--form",
    "forms",
    multiple=True,
    type=click.Choice(FORMS),
    help="int8 forms, may be repeated; without, portable and cpu. gpu: TensorRT 10 and later, trt86: TensorRT 8.6.",
)
@click.option("--samples", default=256, show_default=True, type=click.IntRange(min=1), help="Calibration images.")
@click.option("--method", default="minmax", show_default=True, type=click.Choice(METHODS), help="How ranges are found.")
@click.option("--keep", multiple=True, metavar="NODE", help="A layer that stays in float, by node or weight name.")
@click.option(
    "--rules", metavar="FILE", help="[[gate]] tables to judge by; without, 1.0pt and no slower than the file."
)
@json_option
def quantize(
    model: Path,
    images: Path,
    out: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    inputs: tuple[InputShape, ...],
    forms: tuple[Any, ...],
    samples: int,
    method: Any,
    keep: tuple[str, ...],
    rules: str | None,
    as_json: bool,
) -> None:
    """Quantize MODEL, any fp32 ONNX file of an image network, on real images: fp16 and int8 files beside it.

    With images in class folders a bundle is written too, in which the file itself plays the teacher: 'edgestill profile
    BUNDLE' measures accuracy and latency here or on a device, and 'edgestill gate' judges. What cannot be quantized is
    refused with its node and the reason.
    """
    from pipeline.bundle.foreign import quantize_file
    from pipeline.bundle.pack import SUFFIX
    from pipeline.bundle.pack_foreign import RULES_OF_OURS, pack_foreign
    from pipeline.cli.verdict import read_rules
    from pipeline.recipe import Quantize

    judged_by = RULES_OF_OURS if rules is None else checked(read_rules(rules), rules)
    settings = Quantize.model_validate(
        {"forms": forms or ("portable", "cpu"), "samples": samples, "method": method, "keep_fp32": keep}
    )
    out = out or Path(f"{model.stem}-int8")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; give another --out, or remove it")
    made = quantize_file(
        model,
        images,
        out,
        settings=settings,
        mean=mean,
        std=std,
        shapes=file_shapes(inputs, Subject(text=str(model), kind="onnx", path=model)),
        say=lambda line: None if as_json else click.echo(line, err=True),
    )
    bundle = None
    if made.judging is not None:
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in model.stem).strip("._-")[:60] or "model"
        bundle = pack_foreign(name, made, out / f"{name}{SUFFIX}", judged_by)
    if as_json:
        print_json(
            {
                "folder": str(out),
                "artifacts": made.artifacts,
                "left_out": made.left_out,
                "bundle": None if bundle is None else str(bundle),
            }
        )
        return
    rows = table("file", "bytes", "against the file")
    for entry in made.artifacts.values():
        parity, path = entry["parity"], out / entry["artifact"]["path"]
        noise = "the file itself" if parity is None else f"{parity['sqnr_db']:.0f} dB" if parity["sqnr_db"] else "equal"
        rows.add_row(str(path), f"{path.stat().st_size:,}", noise)
    console().print(rows)
    files = [str(out / entry["artifact"]["path"]) for entry in made.artifacts.values() if entry["parity"]]
    if bundle is not None:
        say_next(shlex.join(["edgestill", "profile", str(bundle)]))
    else:
        onnx = [file for file in files if file.endswith(".onnx")]
        say_next(shlex.join(["edgestill", "profile", *onnx, "--against", str(out / "teacher.onnx")]))


def checked(rules: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The rules as a recipe reads them. Raises `UserError`, one line."""
    from pydantic import ValidationError

    from pipeline.recipe import GateRule
    from pipeline.recipe_errors import lines_of

    try:
        return [GateRule.model_validate(rule).model_dump(mode="json") for rule in rules]
    except ValidationError as error:
        raise UserError(f"{where}: {lines_of(error, 'gate')[0]}") from None
