"""TensorRT and TensorRT-RTX on an NVIDIA GPU as `Runner`s. Needs nothing but the driver, TensorRT and NumPy.

An engine with its sidecar is run as it is. An ONNX file is built on the device first, once for each combination of
file, options, GPU, driver, TensorRT and code of ours, and kept in the user's cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from exporters.artifact import ExportError, IOSpec, read_metadata
from exporters.base import Feeds, FileRunner, LayerSamples, check_feeds, fix_shapes
from exporters.cuda_driver import Cuda, CudaError, capability
from exporters.onnx_file import graph_precision, load_graph
from exporters.tensorrt_api import Edition, edition_of, logger_of, said
from exporters.tensorrt_cache import engine_of
from exporters.tensorrt_engine import SUFFIXES, Sidecar, read_sidecar

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the device by TensorRT's own counters (`activations`, `weights`) and ours (`tensors`); None: unknown."""

    activations_bytes: int
    weights_bytes: int | None
    tensors_bytes: int

    @property
    def total_bytes(self) -> int:
        """All that is known of."""
        return self.activations_bytes + (self.weights_bytes or 0) + self.tensors_bytes


def _one_line(method: Method) -> Method:
    """For a method of `TensorRtRunner`: what the driver refuses is an `ExportError` that says what to do."""

    @functools.wraps(method)
    def explained(self: TensorRtRunner, *args: Any, **named: Any) -> Any:
        try:
            return method(self, *args, **named)
        except CudaError as error:
            advice = "look at nvidia-smi"
            if "OUT_OF_MEMORY" in str(error):
                advice = (
                    "the GPU's memory is full: lower the batch (--input, profile.batch), or end what else runs on it"
                )
            raise ExportError(f"{self.path}: {self.name} on {self.device}: {error}; {advice}") from error

    return explained  # type: ignore[return-value]


class TensorRtRunner(FileRunner):
    """Runs the engine (or, built on the spot, the ONNX file) at `path` on one GPU, "cuda:0", with one stream.

    `threads` is only reported: the GPU does the work. `versions["cuda_graph"]` says whether a prepared inference was
    captured as a CUDA graph, and if not, why. `precision` is only reported; by default the sidecar or file is asked.
    """

    name = "tensorrt"
    home = "cuda"
    _cuda: Cuda | None = None
    _engine: Any = None
    _context: Any = None
    _runtime: Any = None
    _tensors_bytes = 0

    def __init__(self, path: Path | str, **options: Any) -> None:
        super().__init__(path, **options)
        self._held: dict[str, int] = {}

    @property
    def precision(self) -> str:
        if self._precision is None:
            if self._is_engine:
                self._precision = read_sidecar(self.path, check=False).precision
            else:
                self._precision = read_metadata(self.path).get("precision") or graph_precision(load_graph(self.path))
        return self._precision

    @_one_line
    def __enter__(self) -> TensorRtRunner:
        if not self.path.is_file():
            raise ExportError(f"{self.path}: no such file")
        edition = edition_of(self.name)
        try:
            self._cuda = self._open_device()
            engine = self.path
            if not self._is_engine:
                memory = self._cuda.total_bytes()
                engine = engine_of(self.path, edition, index=self._index, memory_bytes=memory, shapes=self._shapes)
            self._load(engine, edition)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        # In this order: what is freed first must not be used by what is freed later.
        self._context = None
        self._engine = None
        self._runtime = None
        if self._cuda is not None:
            self._cuda.close()
        self._cuda, self._held, self._tensors_bytes = None, {}, 0

    @_one_line
    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        check_feeds(feeds, self.inputs, where=str(self.path))
        cuda = self._opened()
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in arrays.items():
            cuda.to_device(self._held[name], array)
        self._enqueue(self._held)
        results = {spec.name: np.empty(_sizes(spec), spec.dtype) for spec in self.outputs}
        for name, array in results.items():
            cuda.to_host(array, self._held[name])
        cuda.synchronize()
        return results

    @_one_line
    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """Put the inputs on the device; the returned function infers on them and copies nothing.

        It launches a CUDA graph where one could be captured, and else enqueues; `synchronize` waits for it.
        """
        check_feeds(feeds, self.inputs, where=str(self.path))
        cuda = self._opened()
        own = self._allocate(cuda)
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in arrays.items():
            cuda.to_device(own[name], array)
        # Once before the capture: TensorRT may allocate and compile at the first inference, which no graph can hold.
        self._enqueue(own)
        cuda.synchronize()
        try:
            launch = cuda.capture(lambda: self._enqueue(own))
        except (CudaError, ExportError) as error:
            self.versions["cuda_graph"] = f"not captured ({error})"
            with suppress(CudaError):
                cuda.synchronize()
            return lambda: self._enqueue(own)
        self.versions["cuda_graph"] = "captured"
        return functools.partial(self._launch, launch)

    @_one_line
    def synchronize(self) -> None:
        self._opened().synchronize()

    def memory(self) -> Memory:
        """What this engine holds on the device."""
        self._opened()
        engine = self._engine
        size = getattr(engine, "device_memory_size_v2", None)  # the older name is gone from 11
        weights = None
        if hasattr(engine, "get_engine_stat"):
            stat = getattr(edition_of(self.name).module.EngineStat, "TOTAL_WEIGHTS_SIZE", None)
            weights = None if stat is None else int(engine.get_engine_stat(stat))
        return Memory(
            activations_bytes=int(engine.device_memory_size if size is None else size),
            weights_bytes=weights,
            tensors_bytes=self._tensors_bytes,
        )

    @_one_line
    def profile_layers(self, feeds: Feeds, runs: int) -> list[LayerSamples]:
        """What TensorRT's own profiler says of each layer as it was fused, in a context of its own, without a graph."""
        from exporters.tensorrt_layers import layer_times

        check_feeds(feeds, self.inputs, where=str(self.path))
        cuda = self._opened()
        own = self._allocate(cuda)
        for name, array in feeds.items():
            cuda.to_device(own[name], np.ascontiguousarray(array))
        context = self._engine.create_execution_context()
        if context is None:
            raise ExportError(f"{self.path}: {self.name} cannot make room for a second context on {self.device}")
        for spec in self.inputs:
            context.set_input_shape(spec.name, _sizes(spec))
        trt = edition_of(self.name).module
        return layer_times(trt, self._engine, context, lambda at: self._enqueue(own, at), cuda.synchronize, runs)

    def layers(self) -> str:
        """The inspector's JSON: the layers as they were fused, with their types and kernels."""
        self._opened()
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return inspector.get_engine_information(edition_of(self.name).module.LayerInformationFormat.JSON)

    @_one_line
    def _launch(self, graph: Callable[[], None]) -> None:
        graph()

    @property
    def _is_engine(self) -> bool:
        return self.path.suffix.lower() in SUFFIXES

    def _open_device(self) -> Cuda:
        try:
            return Cuda(self._index)
        except OSError as error:
            raise ExportError(f"{self.path}: {self.name} needs an NVIDIA GPU; no driver is seen here") from error

    def _load(self, path: Path, edition: Edition) -> None:
        sidecar = read_sidecar(path)
        _check_edition(sidecar, edition, where=str(path))
        trt, cuda = edition.module, self._opened()
        logger, lines = logger_of(edition)
        lines.clear()
        self._runtime = trt.Runtime(logger)
        if "VERSION_COMPATIBLE" in sidecar.flags:
            self._runtime.engine_host_code_allowed = True  # such an engine carries the runtime that it was built with
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ExportError(f"{path}: {edition} cannot load it here ({said(lines)}); build it on this device")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise ExportError(f"{path}: {edition} cannot make room for it on {self.device} ({said(lines)})")
        self.inputs = fix_shapes(sidecar.inputs, self._shapes, where=str(self.path))
        for spec in self.inputs:
            if not self._context.set_input_shape(spec.name, _sizes(spec)):
                profile = sidecar.facts.get("profiles", {}).get(spec.name, [None, None, None])
                raise ExportError(f"{path}: {spec} is outside its profile, {profile[0]} to {profile[2]}")
        self.outputs = tuple(
            IOSpec(name=spec.name, dtype=spec.dtype, shape=tuple(self._context.get_tensor_shape(spec.name)))
            for spec in sidecar.outputs
        )
        self._held = self._allocate(cuda)
        self.versions = {
            self.name: edition.version,
            "cuda_driver": cuda.driver,
            "gpu": f"{cuda.name} ({capability(self._index)})",
            "cuda_graph": "not tried",
        }

    def _allocate(self, cuda: Cuda) -> dict[str, int]:
        """A buffer on the device for every input and output."""
        held = {}
        for spec in (*self.inputs, *self.outputs):
            size = int(np.prod(_sizes(spec), dtype=np.int64)) * np.dtype(spec.dtype).itemsize
            held[spec.name] = cuda.allocate(size)
            self._tensors_bytes += size
        return held

    def _enqueue(self, held: Mapping[str, int], context: Any = None) -> None:
        cuda, context = self._opened(), context or self._context
        for name, pointer in held.items():
            context.set_tensor_address(name, pointer)
        if not context.execute_async_v3(cuda.stream):
            _, lines = logger_of(edition_of(self.name))
            raise ExportError(f"{self.path}: {self.name} could not run it ({said(lines)})")

    def _opened(self) -> Cuda:
        assert self._cuda is not None, "use the runner inside `with`"
        return self._cuda


class TensorRtRtxRunner(TensorRtRunner):
    """The runtime named "tensorrt-rtx": laptop and desktop RTX GPUs."""

    name = "tensorrt-rtx"


def _check_edition(sidecar: Sidecar, edition: Edition, *, where: str) -> None:
    if sidecar.edition != edition.name:
        raise ExportError(f"{where}: built by {sidecar.edition}, which {edition.name} cannot load; build it again")
    if sidecar.version != edition.version and "VERSION_COMPATIBLE" not in sidecar.flags:
        raise ExportError(
            f"{where}: built by {sidecar.edition} {sidecar.version}, but {edition.version} is installed; "
            "build it again, or with version_compatible"
        )


def _sizes(spec: IOSpec) -> tuple[int, ...]:
    return tuple(int(size) for size in spec.shape)
