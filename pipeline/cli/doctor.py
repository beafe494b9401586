"""`edgestill doctor`: what this machine can train, export and run, and the install line for what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.cli.arguments import json_option
from pipeline.cli.output import console, print_json, say_next, table

# what it is for -> (extra, modules with the distributions that bring them)
ABILITIES: dict[str, tuple[str, dict[str, str]]] = {
    "judge and report": ("", {"numpy": "numpy", "pydantic": "pydantic", "jinja2": "jinja2", "onnx": "onnx"}),
    "train and distil": (
        "train",
        {"torch": "torch", "torchvision": "torchvision", "safetensors": "safetensors", "scipy": "scipy"},
    ),
    "prune students": ("train", {"torch_pruning": "torch-pruning"}),
    "train with 8-bit optimizers": ("train", {"bitsandbytes": "bitsandbytes"}),
    "sweep on a Ray cluster": ("sweep", {"ray": "ray"}),
    "read digits": ("train", {"sklearn": "scikit-learn"}),
    "read image files": ("train", {"PIL": "pillow"}),
    "export ONNX": ("train", {"onnx": "onnx", "onnxscript": "onnxscript"}),
    "quantize to int8": ("ort", {"onnxruntime": "onnxruntime"}),
    "run on ONNX Runtime": ("ort", {"onnxruntime": "onnxruntime"}),
    "run on OpenVINO": ("openvino", {"openvino": "openvino"}),
}
# what the exporters do that have no row above
TITLES = {
    "openvino": "convert to OpenVINO",
    "nncf": "quantize with NNCF",
    "int8-linear": "int8 linear layers of bitsandbytes",
}
# any of these gives a processor products of 8-bit numbers that beat 32-bit ones
INT8_FLAGS = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
LOW_DISK_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One ability: `unavailable` is the reason with its install line, None when it works."""

    ability: str
    versions: dict[str, str]
    unavailable: str | None


def findings() -> list[Finding]:
    """Every ability in order, asked without importing a library."""
    return [*(_finding(name, extra, modules) for name, (extra, modules) in ABILITIES.items()), *_further(), *_on_gpus()]


def _further() -> list[Finding]:
    """Exporters and runtimes that say themselves why they cannot work here; no row of ABILITIES has them."""
    from exporters import EXPORTERS, GPU_ONLY, unavailable
    from pipeline.registry import load

    found = [
        _own(TITLES.get(name, f"export {name}"), name, load(target)().unavailable())
        for name, target in EXPORTERS.items()
        if name not in GPU_ONLY and name != "onnx"
    ]
    return [*found, _own("compile torch modules", "torch-compile", unavailable("torch-compile"))]


def _own(ability: str, name: str, reason: str | None) -> Finding:
    from exporters import PACKAGES

    package = PACKAGES[name][0] if name in PACKAGES else name
    version = _version(package)
    return Finding(ability=ability, versions={} if version == "unknown" else {package: version}, unavailable=reason)


def _on_gpus() -> list[Finding]:
    """What needs an NVIDIA GPU; apart, because no other machine has a use for their install line."""
    from exporters import EXPORTERS, GPU_ONLY, PACKAGES, unavailable
    from pipeline.registry import load

    found = []
    for name in GPU_ONLY:
        version = _version(PACKAGES[name][0])
        versions = {} if version == "unknown" else {name: version}
        reasons = {f"run on {name}": unavailable(name, "cuda:0")}
        if name in EXPORTERS:
            reasons = {
                f"build {name} engines": load(EXPORTERS[name])().unavailable(),
                f"run {name} engines": reasons[f"run on {name}"],
            }
        found += [Finding(ability=what, versions=versions, unavailable=why) for what, why in reasons.items()]
    absent = importlib.util.find_spec("pynvml") is None
    version = _version("nvidia-ml-py")
    return [
        *found,
        Finding(
            ability="read a GPU's energy and clocks",
            versions={} if absent else {"nvidia-ml-py": version},
            unavailable="nvidia-ml-py not installed; pip install 'edgestill[nvml]'" if absent else None,
        ),
    ]


def _finding(name: str, extra: str, modules: dict[str, str]) -> Finding:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    versions = {module: _version(package) for module, package in modules.items() if module not in absent}
    reason = None
    if absent:
        what = f"edgestill[{extra}]" if extra else "edgestill"
        reason = f"{', '.join(absent)} not installed; pip install '{what}'"
    return Finding(ability=name, versions=versions, unavailable=reason)


def _version(package: str) -> str:
    for name in (package, f"{package}-gpu", f"{package}-headless"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def warnings(machine: dict[str, Any]) -> list[str]:
    """What works but will disappoint, one line each."""
    found = []
    if _version("onnxruntime-gpu") != "unknown" and _installed("onnxruntime"):
        found.append("onnxruntime and onnxruntime-gpu are both installed and overwrite each other; uninstall one")
    if not set(INT8_FLAGS) & set(machine["flags"]):
        found.append("this processor has no 8-bit dot products: int8 will save size here, and little or no time")
    if machine["on_ac_power"] is False:
        found.append("on battery: plug in before measuring, clocks are lower")
    if machine["governor"] and machine["governor"] != "performance":
        found.append(f"frequency governor is {machine['governor']}: latencies vary more than with 'performance'")
    if (machine["load_1min"] or 0) > 0.5:
        found.append(
            f"other programs are busy (load {machine['load_1min']:.1f}): latencies will be marked contaminated"
        )
    free = shutil.disk_usage(Path.cwd()).free
    if free < LOW_DISK_BYTES:
        found.append(f"only {free / 1e9:.1f} GB of disk are free here; give another --out")
    return found


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@click.command()
@click.option("--device", metavar="NAME", help="Say instead what will work on a target, such as jetson-orin-nano.")
@json_option
def doctor(device: str | None, as_json: bool) -> None:
    """Say what this machine can train, export and run, and how to install what is missing.

    With --device, before anything is exported: which precisions and operator sets a target takes, release by release.
    """
    if device is not None:
        from pipeline.cli.doctor_device import about, show_target

        told = about(device)
        print_json(told) if as_json else show_target(told)
        return
    from pipeline.environment import devices
    from pipeline.quantities import show
    from profiles.machine import machine

    host, abilities, gpus = machine(), findings(), devices()
    worries = warnings(host)
    if as_json:
        print_json(
            {"machine": host, "gpus": gpus, "abilities": [asdict(entry) for entry in abilities], "warnings": worries}
        )
        return
    from rich.text import Text

    shown = console()
    cores = f"{host['cores'] or host['processors']} cores"
    memory = show(host["memory_bytes"], "bytes")
    shown.print(Text(f"{host['cpu']}, {cores}, {memory}; {host['os']}, Python {host['python']}"))
    shown.print(Text(f"int8 instructions: {', '.join(f for f in host['flags'] if f in INT8_FLAGS) or 'none'}", "dim"))
    shown.print(Text(f"GPU: {', '.join(gpus) or 'none seen'}", "dim"))
    shown.print()
    rows = table("can", "here", "with")
    for entry in abilities:
        works = entry.unavailable is None
        state = Text("yes", "green") if works else Text("no", "red")
        versions = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        rows.add_row(Text(entry.ability), state, Text(versions if works else str(entry.unavailable)))
    shown.print(rows)
    for line in worries:
        shown.print(Text(f"note: {line}", "yellow"), soft_wrap=True)
    extras = [f"edgestill[{extra}]" for extra in _missing_extras(abilities)]
    shown.print()
    say_next(f"pip install '{extras[0]}'" if extras else "edgestill run digits")


def _missing_extras(abilities: list[Finding]) -> list[str]:
    wanted = [ABILITIES[entry.ability][0] for entry in abilities if entry.unavailable and entry.ability in ABILITIES]
    extras = list(dict.fromkeys(extra for extra in wanted if extra))
    if "train" in extras and "ort" in extras:
        extras.remove("ort")  # [train] brings it
    return [",".join(extras)] if extras else []
