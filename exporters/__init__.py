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
    "openvino": "exporters.to_openvino:OpenVinoExporter",
    "nncf": "exporters.to_openvino:NncfExporter",
    "int8-linear": "exporters.to_int8_linear:Int8LinearExporter",
    "tensorrt": "exporters.to_tensorrt:TensorRtExporter",
    "tensorrt-rtx": "exporters.to_tensorrt:TensorRtRtxExporter",
}

RUNTIMES = {
    "torch": "exporters.run_torch:TorchRunner",
    "torch-compile": "exporters.run_torch_compile:TorchCompileRunner",
    "onnxruntime": "exporters.run_onnx:OnnxRuntimeRunner",
    "onnxruntime-cuda": "exporters.run_onnx_gpu:OnnxRuntimeCudaRunner",
    "onnxruntime-tensorrt": "exporters.run_onnx_gpu:OnnxRuntimeTensorRtRunner",
    "openvino": "exporters.run_openvino:OpenVinoRunner",
    "tensorrt": "exporters.run_tensorrt:TensorRtRunner",
    "tensorrt-rtx": "exporters.run_tensorrt:TensorRtRtxRunner",
}

# What each runtime imports, and the extra of this project that installs it.
PACKAGES = {
    "torch": ("torch", "train"),
    "torch-compile": ("torch", "train"),
    "onnxruntime": ("onnxruntime", "ort"),
    "onnxruntime-cuda": ("onnxruntime", "ort-gpu"),
    "onnxruntime-tensorrt": ("onnxruntime", "ort-gpu"),
    "openvino": ("openvino", "openvino"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx"),
}


# Runtimes that run torch modules, and no files.
MODULE_RUNTIMES = ("torch", "torch-compile")

# Runtimes that run on the CPU and nowhere else, and who runs the same files on a GPU.
CPU_ONLY = {"onnxruntime": "onnxruntime-cuda or onnxruntime-tensorrt", "openvino": ""}

# Runtimes that run on an NVIDIA GPU and nowhere else, and what can be done with them without one.
GPU_ONLY = {
    "tensorrt": "needs an NVIDIA GPU to build and to run; none is seen here",
    "tensorrt-rtx": "builds here, needs an NVIDIA GPU to run",
    "onnxruntime-cuda": "needs an NVIDIA GPU to run; none is seen here",
    "onnxruntime-tensorrt": "needs an NVIDIA GPU to run; none is seen here",
}

# Distributions that a GPU runtime needs besides the package that it imports.
_GPU_DISTRIBUTIONS = {"onnxruntime-cuda": ("onnxruntime-gpu",), "onnxruntime-tensorrt": ("onnxruntime-gpu", "tensorrt")}

# The GPUs that an edition has kernels for, where it does not have them for all: those of data centres are left out.
SERVED = {"tensorrt-rtx": ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")}


def unavailable(runtime: str, device: str = "cpu") -> str | None:
    """Why `runtime` cannot run on `device` here, with the install line; None when it can. Imports nothing heavy."""
    from exporters.base import missing_package

    package, extra = PACKAGES[_known(runtime)]
    if missing := missing_package(package, extra):
        return missing
    if runtime in GPU_ONLY:
        return _not_the_gpu_edition(runtime) or _without_gpu(runtime, device)
    if device.startswith("cuda") and runtime in CPU_ONLY:
        instead = CPU_ONLY[runtime]
        return f"{runtime} does not run on {device}; {f'that is {instead}' if instead else 'profile on the cpu'}"
    if runtime == "torch-compile" and not device.startswith("cuda"):
        from exporters.compiler import missing_compiler

        return missing_compiler()
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
    if _known(runtime) in MODULE_RUNTIMES:
        others = ", ".join(sorted(set(RUNTIMES) - set(MODULE_RUNTIMES)))
        raise ExportError(f"{path}: {runtime} does not run ONNX files; use one of {others}")
    if reason := unavailable(runtime, device if runtime in GPU_ONLY else "cpu"):
        raise ExportError(f"{runtime}: {reason}")
    module, _, attribute = RUNTIMES[runtime].partition(":")
    runner: Any = getattr(importlib.import_module(module), attribute)
    return runner(path, threads=threads, device=device, shapes=shapes, precision=precision)


def _not_the_gpu_edition(runtime: str) -> str | None:
    """onnxruntime without its GPU providers has the same import name; TensorRT's provider needs TensorRT as well."""
    for needed in _GPU_DISTRIBUTIONS.get(runtime, ()):
        if not installed_versions(needed):
            if needed == "tensorrt":
                return "tensorrt is not installed; pip install 'edgestill[tensorrt]'"
            return f"{needed} is not installed; put it in the place of onnxruntime: pip install 'edgestill[ort-gpu]'"
    return None


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
    "CPU_ONLY",
    "EXPORTERS",
    "GPU_ONLY",
    "MODULE_RUNTIMES",
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
