"""`edgestill list`: what there is, and what is unavailable here and why. Imports no library to find out."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from pipeline.cli.arguments import json_option
from pipeline.cli.output import console, print_json, say_next, table
from pipeline.errors import RecipeError, nearest

if TYPE_CHECKING:
    from pipeline.losses import Loss

Row = dict[str, str | None]


def missing(package: str, extra: str) -> str | None:
    """Why something cannot be used, with the install line; None when the package is there."""
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed; pip install 'edgestill[{extra}]'"


def row(name: str, description: str, unavailable: str | None = None) -> Row:
    return {"name": name, "description": description, "unavailable": unavailable}


def losses() -> list[Row]:
    from pipeline.losses import ROWS

    compares = {"": "logits", "map": "one feature map", "maps": "feature maps", "embedding": "pooled features"}
    reason = missing("torch", "train")
    return [
        row(name, "; ".join(filter(None, [compares[loss.taps] if loss.taught else "labels", _options(loss)])), reason)
        for name, loss in ROWS.items()
    ]


def _options(loss: Loss) -> str:
    shown = {key: f"{value:g}" if isinstance(value, (int, float)) else "FILE" for key, value in loss.options.items()}
    return ", ".join(f"{key} = {value}" for key, value in shown.items())


def models() -> list[Row]:
    from pipeline.models import MODELS, OPTIONS

    torch, torchvision = missing("torch", "train"), missing("torchvision", "train")
    spandrel = missing("spandrel", "super-resolution")
    rows = [
        row(
            name,
            "?" + "&".join(f"{k}={v}" for k, v in OPTIONS[name].items()) if OPTIONS[name] else "",
            (torch or spandrel) if "spandrel" in target else torch,
        )
        for name, target in MODELS.items()
    ]
    rows.append(row("torchvision:NAME", "any classifier of torchvision, such as torchvision:resnet18", torchvision))
    rows.append(row("spandrel:FILE", "the network of a super-resolution checkpoint that spandrel knows", spandrel))
    smp = missing("segmentation_models_pytorch", "dense")
    rows.append(row("smp:Unet?encoder=NAME", "a network of segmentation-models-pytorch, for pictures as answers", smp))
    rows.append(row("my_pkg.my_module:build", "a function of your own that returns an nn.Module", torch))
    pruning = missing("torch_pruning", "train")
    rows.append(row("pruned:MODEL?macs=0.5", "any of these with channels removed, to half of its MACs", pruning))
    return rows


def datasets() -> list[Row]:
    from pipeline.data import DOWNLOADS, NEEDS_ROOT, SOURCES

    needs = {"digits": "sklearn", "imagefolder": "PIL", **dict.fromkeys(DOWNLOADS, "torchvision")}
    needs |= {"sample-photographs": "sklearn", "photographs": "PIL", "bsds500-photographs": "PIL"}
    rows = []
    for name in SOURCES:
        what = f"data.root is {NEEDS_ROOT[name]}" if name in NEEDS_ROOT else "nothing to download"
        rows.append(row(name, what, missing(needs[name], "train") if name in needs else None))
    return rows


def exporters() -> list[Row]:
    from exporters import EXPORTERS
    from pipeline.registry import load

    what = {"onnx": "fp32, fp16 and int8 ONNX", "tensorrt": "engines from ONNX files, built on their GPU"}
    what["tensorrt-rtx"] = "engines from ONNX files, built ahead of time"
    what |= {"openvino": "OpenVINO's own files (IR) from ONNX files", "nncf": "the same in int8, quantized by NNCF"}
    what["int8-linear"] = "checkpoints with bitsandbytes' int8 linear layers, for torch alone"
    return [row(name, what.get(name, ""), load(target)().unavailable()) for name, target in EXPORTERS.items()]


def runtimes() -> list[Row]:
    from exporters import GPU_ONLY, RUNTIMES, unavailable

    what = {"torch": "runs the trained networks", "openvino": "runs ONNX files and IR"}
    what["torch-compile"] = "the same, compiled; only where a recipe or a command names it"
    what |= dict.fromkeys(GPU_ONLY, "runs ONNX files and engines")
    providers = {"onnxruntime": "CPU", "onnxruntime-cuda": "CUDA", "onnxruntime-tensorrt": "TensorRT"}
    what |= {name: f"runs ONNX files by the {provider} provider" for name, provider in providers.items()}
    return [row(name, what.get(name, ""), unavailable(name, _device(name))) for name in RUNTIMES]


def _device(runtime: str) -> str:
    from exporters import GPU_ONLY

    return "cuda:0" if runtime in GPU_ONLY else "cpu"


def recipes() -> list[Row]:
    from pipeline.recipe_file import read_toml, shipped

    return [row(name, str(read_toml(path).get("description", ""))) for name, path in shipped().items()]


def devices() -> list[Row]:
    from pipeline.environment import devices as found
    from profiles.targets import devices as targets

    none = None if found() else "no NVIDIA GPU is seen here; look at its driver (nvidia-smi)"
    return [row(name, d.description, none if d.device.startswith("cuda") else None) for name, d in targets().items()]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "losses": losses,
    "models": models,
    "datasets": datasets,
    "exporters": exporters,
    "runtimes": runtimes,
    "recipes": recipes,
    "devices": devices,
}


@click.command("list")
@click.argument("kind", required=False, metavar="[KIND]")
@click.option("--schema", is_flag=True, help="With recipes: the JSON Schema of a recipe, so that editors complete.")
@json_option
def list_(kind: str | None, schema: bool, as_json: bool) -> None:
    """List losses, models, datasets, exporters, runtimes, recipes or devices; without a word, all of them."""
    if kind is not None and kind not in KINDS:
        raise RecipeError(f"list: nothing is called {kind!r}{nearest(kind, list(KINDS))}")
    if schema:
        if kind != "recipes":
            raise RecipeError("--schema: only recipes have one; write 'edgestill list recipes --schema'")
        from pipeline.recipe_file import schema as recipe_schema

        print_json(recipe_schema())
        return
    found = {name: rows() for name, rows in KINDS.items() if kind in (None, name)}
    if as_json:
        print_json(found)
        return
    from rich.text import Text

    shown = console()
    for name, rows in found.items():
        part = table(name, "", "here")
        for entry in rows:
            state = Text("yes", "green") if entry["unavailable"] is None else Text(entry["unavailable"], "yellow")
            part.add_row(Text(str(entry["name"])), Text(str(entry["description"]), "dim"), state)
        shown.print(part)
        shown.print()
    gaps = any(entry["unavailable"] for rows in found.values() for entry in rows)
    say_next("edgestill doctor" if gaps else "edgestill run digits")
