"""Engines that are built on a device: where they are kept, and what must be the same for one to be used again."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.artifact import ExportError, file_sha256
from exporters.base import Shapes
from exporters.cuda_driver import gpu_and_driver
from exporters.onnx_file import external_files, load_graph
from exporters.tensorrt_engine import read_sidecar

if TYPE_CHECKING:
    from exporters.tensorrt_api import Edition
    from exporters.tensorrt_options import BuildOptions

# The part of the GPU's memory that a build may take as workspace. On a Jetson the processor, the GPU and the builder
# share that memory, and without a limit TensorRT takes all of it for granted.
WORKSPACE_SHARE = 4


def cache_folder() -> Path:
    """Where engines that were built on this device are kept: EDGESTILL_CACHE, or the user's cache folder."""
    given = os.environ.get("EDGESTILL_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgestill"
    return base / "engines"


def cached_path(key: Mapping[str, Any], stem: str, suffix: str = ".engine") -> Path:
    """The place in the cache that `key` stands for; whatever differs in it leads to another place."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{stem}-{digest[:16]}{suffix}"


def file_key(path: Path) -> dict[str, str]:
    """Name -> sha256 of the ONNX file at `path` and of the files beside it that hold weights of it."""
    found = {"": file_sha256(path)}
    for name in external_files(load_graph(path)):
        if not (path.parent / name).is_file():
            raise ExportError(f"{path}: its weights lie in {name}, which is not there; keep both files together")
        found[name] = file_sha256(path.parent / name)
    return found


@functools.cache
def code_version() -> str:
    """sha256 of the code that makes an engine of a file, so that none is used that other code has built."""
    here = Path(__file__).parent
    files = [here / "opset.py", here / "to_tensorrt.py", *sorted(here.glob("tensorrt_*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def engine_of(path: Path, edition: Edition, *, index: int, memory_bytes: int, shapes: Shapes | None) -> Path:
    """The engine of the ONNX file at `path` on the GPU `index` with `memory_bytes`: from the cache, or built now.

    It is used again for the same bytes, weights beside the file included, options, GPU, driver, TensorRT and code of
    ours. A build begins with the timings of earlier ones on the same GPU, driver and TensorRT.
    """
    from exporters.to_tensorrt import build_engine

    options = options_here(edition, index=index, memory_bytes=memory_bytes, shapes=shapes)
    key = {
        "onnx": file_key(path),
        "edition": str(edition),
        **gpu_and_driver(index),
        "options": {**asdict(options), "timing_cache": None},  # it changes how long a build takes, not what is asked
        "code": code_version(),
    }
    engine = cached_path(key, path.stem)
    with suppress(ExportError):
        read_sidecar(engine)
        return engine
    build_engine(path, engine, edition=edition, options=options)
    return engine


def options_here(edition: Edition, *, index: int, memory_bytes: int, shapes: Shapes | None) -> BuildOptions:
    """How engines are built on a device: a limited workspace, a timing cache where the edition has one, warnings as
    notes."""
    from exporters.tensorrt_options import BuildOptions

    timings = cached_path({"edition": str(edition), **gpu_and_driver(index)}, "timings", ".cache")
    return BuildOptions(
        shapes=dict(shapes) if isinstance(shapes, Mapping) else shapes,
        workspace_bytes=memory_bytes // WORKSPACE_SHARE,
        timing_cache=None if edition.ahead_of_time else timings,
        strict=False,
    )
