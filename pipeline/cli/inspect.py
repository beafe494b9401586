"""`edgestill inspect`: counts, size and precision of a model name, a checkpoint or any ONNX file."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.arguments import (
    InputShape,
    Subject,
    assumed_shape,
    file_shapes,
    input_option,
    json_option,
    module_of,
    one_shape,
    subject_of,
)
from pipeline.cli.inspect_engine import of_engine, show_engine
from pipeline.cli.output import console, plain, print_json, say_next, table

if TYPE_CHECKING:
    from torch import nn


@click.command()
@click.argument("subject")
@input_option
@click.option("--classes", type=click.IntRange(min=1), help="Outputs of a model by name; without, its family's own.")
@click.option("--modules", is_flag=True, help="List the parts of the network that a feature loss can name.")
@json_option
def inspect(subject: str, inputs: tuple[InputShape, ...], classes: int | None, modules: bool, as_json: bool) -> None:
    """Count SUBJECT: a model name (torchvision:resnet18), a checkpoint (.safetensors) or an ONNX file; of a TensorRT
    engine (.engine), say what the file beside it records.

    MACs are the products of convolutions, linear layers, matrix products and attention over the whole --input, its
    batch included; FLOPs are 2 a MAC; operations that are not counted are listed.
    """
    what = subject_of(subject)
    if what.kind == "engine":
        engine = plain(of_engine(what.path))
        print_json(engine) if as_json else show_engine(engine)
        return
    if modules and what.kind == "onnx":
        raise click.UsageError("--modules is for a model name or a checkpoint; an ONNX file has no modules")
    found = plain(of_onnx(what, inputs) if what.kind == "onnx" else of_module(what, inputs, classes, modules=modules))
    if as_json:
        print_json(found)
        return
    _show(found)
    measured = " ".join(["edgestill profile", subject, *(f"--input {_written(given)}" for given in inputs)])
    say_next(measured)


def of_onnx(subject: Subject, inputs: tuple[InputShape, ...]) -> dict[str, Any]:
    """Counts and description of any ONNX file. Raises `ExportError` or `ProfileError`, one line."""
    from exporters.inspect_onnx import describe
    from profiles.flops import count_onnx
    from profiles.size import size_bytes

    shapes = file_shapes(inputs, subject)
    about = describe(subject.path, shapes)
    counts = asdict(count_onnx(subject.path, shapes))
    about.pop("params")  # counted once, by the counter of MACs
    size = {"size_bytes": size_bytes(subject.path)}  # weights beside the file included
    return {"subject": subject.text, "kind": "onnx", **counts, **about, **size}


def of_module(
    subject: Subject, inputs: tuple[InputShape, ...], classes: int | None, *, modules: bool = False
) -> dict[str, Any]:
    """Counts of a torch module; size is that of its weights and buffers, or of the checkpoint."""
    from profiles.flops import count_torch

    shape = one_shape(inputs, subject)
    module, shape = module_of(subject, shape, classes, empty=True)
    counts = asdict(count_torch(module, shape))
    bytes_by_dtype = _bytes_by_dtype(module)
    total = sum(bytes_by_dtype.values())
    file = subject.kind == "checkpoint"
    return {
        "subject": subject.text,
        "kind": subject.kind,
        **counts,
        "size_bytes": subject.path.stat().st_size if file else total,
        "precision_share": {dtype: size / total for dtype, size in sorted(bytes_by_dtype.items())},
        "inputs": [{"name": "input", "dtype": "float32", "shape": list(shape)}],
        "input_assumed": not inputs and not file and shape == assumed_shape(subject.text),
    } | ({"modules": _outline(subject, shape, classes)} if modules else {})


def _outline(subject: Subject, shape: tuple[int, ...], classes: int | None) -> list[dict[str, Any]]:
    from pipeline.distillers.taps import outline

    module, shape = module_of(subject, shape, classes, empty=False)
    return [asdict(part) for part in outline(module, shape[1:])]


def _bytes_by_dtype(module: nn.Module) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):  # a counter of training, in no exported file
            continue
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() * tensor.element_size()
    return sizes


def _written(given: InputShape) -> str:
    return (f"{given.name}=" if given.name else "") + ",".join(map(str, given.shape))


def _show(found: dict[str, Any]) -> None:
    from rich.text import Text

    from pipeline.quantities import show

    rows = table("", "", "")
    rows.show_header = False
    uncounted = ", ".join(f"{name} {calls}" for name, calls in found["uncounted"].items())
    lines = [
        ("input", "  ".join(_io(entry) for entry in found["inputs"]), "assumed" if found.get("input_assumed") else ""),
        ("output", "  ".join(_io(entry) for entry in found.get("outputs", ())), ""),
        ("parameters", f"{found['params']:,}", show(found["params"])),
        ("weights of convolutions and linear layers", f"{found['conv_linear_weights']:,}", ""),
        ("MACs", f"{found['macs']:,}", show(found["macs"])),
        ("FLOPs (2 a MAC)", f"{found['flops']:,}", show(found["flops"])),
        ("not counted", uncounted or "nothing", "calls"),
        ("size", f"{found['size_bytes']:,} bytes", show(found["size_bytes"], "bytes")),
        ("weight bytes by type", _shares(found["precision_share"]), ""),
    ]
    if found["kind"] == "onnx":
        quantized = found["quantized_share"]
        opset = ", ".join(f"{domain} {version}" for domain, version in found["opset"].items())
        lines += [
            ("computes in", found["precision"], ""),
            ("quantized layers", "no such layers" if quantized is None else f"{quantized:.0%}", ""),
            ("operator set", opset, f"IR {found['ir_version']}"),
            ("made by", found["producer"] or "unknown", ""),
            ("operators", ", ".join(f"{name} {count}" for name, count in found["operators"].items()), ""),
        ]
        lines += [(f"edgestill.{key}", str(value), "") for key, value in found["metadata"].items()]
    for name, value, note in lines:
        if value:
            rows.add_row(name, Text(value), Text(note, "dim"))
    console().print(rows)
    if "modules" in found:
        console().print(_parts(found["modules"]))


def _parts(modules: list[dict[str, Any]]) -> Any:
    """What a feature loss can name: parts that are run once and give one tensor; the others are shown dimmed."""
    rows = table("module", "kind", "output a sample")
    for part in modules:
        usable = part["calls"] == 1 and part["shape"] is not None
        shape = "x".join(map(str, part["shape"])) if part["shape"] is not None else "not one tensor"
        note = shape if usable else f"{shape}, run {part['calls']} times" if part["calls"] else "not run"
        rows.add_row(part["path"], part["kind"], note, style=None if usable else "dim")
    return rows


def _io(entry: dict[str, Any]) -> str:
    return f"{entry['name']} {entry['dtype']}[{', '.join(map(str, entry['shape']))}]"


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))
