"""Weights to a file, and a file to something that runs. Knows nothing of recipes, and of data only plain arrays.

The tables are literal `name -> "module:attribute"`, so that asking what there is imports nothing heavy.
To add a runtime: one file with a class like `run_onnx.OnnxRuntimeRunner`, and one line in `RUNTIMES` and `PACKAGES`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.artifact import (
    PRECISIONS,
    Artifact,
    ExportError,
    IOSpec,
    Precision,
    Preprocessing,
    installed_versions,
    read_metadata,
)

if TYPE_CHECKING:
    from exporters.base import Runner, Shapes

EXPORTERS = {
    "onnx": "exporters.to_onnx:OnnxExporter",
    "tensorrt": "exporters.to_tensorrt:TensorRtExporter",
    "tensorrt-rtx": "exporters.to_tensorrt:TensorRtRtxExporter",
}

RUNTIMES = {
    "torch": "exporters.run_torch:TorchRunner",
    "onnxruntime": "exporters.run_onnx:OnnxRuntimeRunner",
    "openvino": "exporters.run_openvino:OpenVinoRunner",
    "tensorrt": "exporters.run_tensorrt:TensorRtRunner",
    "tensorrt-rtx": "exporters.run_tensorrt:TensorRtRtxRunner",
}

# What each runtime imports, and the extra of this project that installs it.
PACKAGES = {
    "torch": ("torch", "train"),
    "onnxruntime": ("onnxruntime", "ort"),
    "openvino": ("openvino", "openvino"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx"),
}


# What a runtime needs to run on a GPU, where that is another distribution; None: it does not run on one.
CUDA_PACKAGES = {"torch": "torch", "onnxruntime": "onnxruntime-gpu", "openvino": None}

# Runtimes that run on an NVIDIA GPU and nowhere else, and what can be done with them without one.
GPU_ONLY = {
    "tensorrt": "needs an NVIDIA GPU to build and to run; none is seen here",
    "tensorrt-rtx": "builds here, needs an NVIDIA GPU to run",
}

# The GPUs that an edition has kernels for, where it does not have them for all: those of data centres are left out.
SERVED = {"tensorrt-rtx": ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")}


def unavailable(runtime: str, device: str = "cpu") -> str | None:
    """Why `runtime` cannot run on `device` here, with the install line; None when it can. Imports nothing heavy."""
    from exporters.base import missing_package

    package, extra = PACKAGES[_known(runtime)]
    if missing := missing_package(package, extra):
        return missing
    if runtime in GPU_ONLY:
        return _without_gpu(runtime, device)
    if not device.startswith("cuda"):
        return None
    needed = CUDA_PACKAGES[runtime]
    if needed is None:
        return f"{runtime} does not run on {device}; profile on the cpu"
    if needed not in installed_versions(needed):
        return f"{needed} is not installed; put it in the place of {package}: pip install 'edgestill[ort-gpu]'"
    return None


def open_runner(
    runtime: str,
    path: Path | str,
    *,
    threads: int,
    device: str = "cpu",
    shapes: Shapes | None = None,
    precision: Precision | None = None,
) -> Runner:
    """A runner, not yet entered, for the ONNX file (or, on TensorRT, the engine) at `path`.

    `shapes` fills open sizes: one shape for a model with one input, else a shape for each input name. `precision` is
    what the runner reports; without it the file's metadata or, failing that, its graph is asked.
    """
    if _known(runtime) == "torch":
        raise ExportError(
            f"{path}: torch does not run ONNX files; use one of {', '.join(sorted(set(RUNTIMES) - {'torch'}))}"
        )
    if reason := unavailable(runtime, device if runtime in GPU_ONLY else "cpu"):
        raise ExportError(f"{runtime}: {reason}")
    module, _, attribute = RUNTIMES[runtime].partition(":")
    runner: Any = getattr(importlib.import_module(module), attribute)
    return runner(path, threads=threads, device=device, shapes=shapes, precision=precision)


def _without_gpu(runtime: str, device: str) -> str | None:
    from exporters.cuda_driver import capability, device_count

    if not device_count():
        return GPU_ONLY[runtime]
    if not device.startswith("cuda"):
        return f"{runtime} does not run on {device}; profile on cuda:0"
    index = device.partition(":")[2]
    found = capability(int(index) if index.isdecimal() else 0)
    served = SERVED.get(runtime)
    if found is not None and served is not None and found not in served:
        return f"{runtime} serves compute capabilities {', '.join(served)}; {device} has {found}"
    return None


def _known(runtime: str) -> str:
    if runtime not in RUNTIMES:
        raise ExportError(f"unknown runtime {runtime!r}; known: {', '.join(sorted(RUNTIMES))}")
    return runtime


__all__ = [
    "EXPORTERS",
    "GPU_ONLY",
    "PACKAGES",
    "PRECISIONS",
    "RUNTIMES",
    "Artifact",
    "ExportError",
    "IOSpec",
    "Precision",
    "Preprocessing",
    "open_runner",
    "read_metadata",
    "unavailable",
]
