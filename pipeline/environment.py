"""What a result was made with: versions, machine, source revision. Asked without importing anything heavy.

No host name, user or path is recorded: manifests and reports are meant to be passed on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "bitsandbytes",
    "nncf",
    "numpy",
    "onnx",
    "onnxconverter-common",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "openvino",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "segmentation-models-pytorch",
    "spandrel",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "torchvision",
)
VARIABLES = ("CUDA_VISIBLE_DEVICES", "KMP_AFFINITY", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
VARIABLES += ("WORLD_SIZE",)  # of torchrun: processes that train together
_SOURCE = Path(__file__).resolve().parent.parent


@functools.cache
def collect() -> dict[str, Any]:
    """The environment as JSON-able values; asked once a process. What cannot be found out is null."""
    return {
        "edgestill": _version("edgestill"),
        "source": source_revision(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "devices": devices(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def source_revision(folder: Path = _SOURCE) -> dict[str, Any] | None:
    """`{commit, dirty}` when edgestill runs from a git checkout of its own, else None; not of the working directory."""
    if not (folder / ".git").exists():
        return None
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def cpu_model() -> str | None:
    """The processor's name as its maker gives it, or None."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or None


def usable_cores() -> int | None:
    """Cores that this process may run on (affinity), which is what containers and `taskset` change."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def memory_bytes() -> int | None:
    """Physical memory, or None."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def several() -> bool:
    """Whether this process was started as one of several, as torchrun does."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ


def devices() -> list[str]:
    """Accelerators by name: Jetson boards by device tree, NVIDIA cards by driver; empty if there are none."""
    found = []
    with contextlib.suppress(OSError):
        model = Path("/proc/device-tree/model").read_text(errors="replace").strip("\0 \n")
        if model:
            found.append(model)
    if shutil.which("nvidia-smi"):
        listing = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
        found.extend(line.strip() for line in (listing or "").splitlines() if line.strip())
    return found


def reset_peak_rss() -> None:
    """Start the peak of resident memory anew; without that switch in the kernel it stays the whole process's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int | None:
    """Peak of resident memory of this process since `reset_peak_rss`; its children are not counted."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return None


def reset_peaks() -> None:
    """Start every peak of memory anew: of this process, and of each GPU that torch works on."""
    reset_peak_rss()
    if cuda := _cuda_in_use():
        for index in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(index)


def peaks() -> dict[str, int | None]:
    """Peaks since `reset_peaks`: `peak_rss_bytes`, and where torch works on GPUs `peak_cuda_bytes`, what its allocator
    held for tensors on the fullest of them (contexts, and what other libraries take, are not in it)."""
    found = {"peak_rss_bytes": peak_rss_bytes()}
    if cuda := _cuda_in_use():
        found["peak_cuda_bytes"] = max(cuda.max_memory_allocated(index) for index in range(cuda.device_count()))
    return found


def _cuda_in_use() -> Any:
    """torch.cuda once something ran on it; None before, and where torch was never imported."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
