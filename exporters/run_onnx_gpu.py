"""ONNX Runtime on an NVIDIA GPU as a `Runner`: its CUDA provider, and its TensorRT provider.

Each opens a session of its own to see, by onnxruntime's profile, that the nodes ran where they were asked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from exporters.artifact import ExportError, IOSpec, installed_versions
from exporters.cuda_driver import gpu_and_driver
from exporters.onnx_providers import check_ran
from exporters.run_onnx import OnnxRuntimeRunner
from exporters.tensorrt_cache import cached_path, file_key

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


class OnnxRuntimeCudaRunner(OnnxRuntimeRunner):
    """Runs the ONNX file at `path` by CUDA's kernels on `device` ("cuda:0"); fp32 is true fp32, TF32 is off."""

    name = "onnxruntime-cuda"
    provider = CUDA
    home = "cuda"

    def __enter__(self) -> OnnxRuntimeCudaRunner:
        super().__enter__()
        try:
            self._see_who_runs()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _see_who_runs(self) -> None:
        zeros = {spec.name: np.zeros(_sizes(spec, str(self.path)), spec.dtype) for spec in self.inputs}
        self.versions["ran_on"] = check_ran(self.nodes_by_provider(zeros), self.provider, where=str(self.path))

    def _providers(self) -> list[tuple[str, dict[str, Any]]]:
        return [(CUDA, {"device_id": str(self._index), "use_tf32": "0"})]


class OnnxRuntimeTensorRtRunner(OnnxRuntimeCudaRunner):
    """Runs the ONNX file at `path` by an engine that TensorRT builds of it on loading; what it does not take, by CUDA.

    fp16 and int8 are allowed where the file is in them, and nowhere else. Engines are kept in the user's cache.
    """

    name = "onnxruntime-tensorrt"
    provider = TENSORRT
    _options: dict[str, str] | None = None

    def __enter__(self) -> OnnxRuntimeTensorRtRunner:
        self._options = None  # the file, or the driver, may be another by now
        super().__enter__()
        return self

    def _providers(self) -> list[tuple[str, dict[str, Any]]]:
        if self._options is None:
            self._options = self._cached(
                {
                    "device_id": str(self._index),
                    "trt_fp16_enable": str(self.precision in ("fp16", "int8")),
                    "trt_int8_enable": str(self.precision == "int8"),
                }
            )
        return [(TENSORRT, self._options), *super()._providers()]

    def _cached(self, options: dict[str, str]) -> dict[str, str]:
        """`options` with a folder for the engines: a runner opens several sessions, and each would build its own.

        ONNX Runtime looks there by graph and kind of GPU alone, so that the folder stands for all else: the file and
        weights beside it, options and sizes, GPU, driver, ONNX Runtime and TensorRT.
        """
        bound = {**gpu_and_driver(self._index), **installed_versions("onnxruntime-gpu", "tensorrt")}
        shapes = dict(self._shapes) if isinstance(self._shapes, Mapping) else self._shapes
        key = {"onnx": file_key(self.path), "options": options, "shapes": shapes, **bound}
        engines, timings = (cached_path(key, self.path.stem, ".ort"), cached_path(bound, "timings", ".ort"))
        for folder in (engines, timings):  # ONNX Runtime makes a folder, but none above it
            folder.mkdir(parents=True, exist_ok=True)
        return {
            **options,
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(timings),
        }


def _sizes(spec: IOSpec, where: str) -> tuple[int, ...]:
    if spec.dynamic:
        raise ExportError(f"{where}: input {spec} has open sizes; give its shape")
    return tuple(int(size) for size in spec.shape)
