"""ONNX Runtime on an NVIDIA GPU as a `Runner`: its CUDA provider, and its TensorRT provider.

Each opens a session of its own to see, by onnxruntime's profile, that the nodes ran where they were asked to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporters.artifact import ExportError, IOSpec
from exporters.onnx_providers import check_ran
from exporters.run_onnx import OnnxRuntimeRunner

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

    fp16 and int8 are allowed where the file is in them, and nowhere else.
    """

    name = "onnxruntime-tensorrt"
    provider = TENSORRT

    def _providers(self) -> list[tuple[str, dict[str, Any]]]:
        precision = self.precision
        options = {
            "device_id": str(self._index),
            "trt_fp16_enable": str(precision in ("fp16", "int8")),
            "trt_int8_enable": str(precision == "int8"),
        }
        return [(TENSORRT, options), *super()._providers()]


def _sizes(spec: IOSpec, where: str) -> tuple[int, ...]:
    if spec.dynamic:
        raise ExportError(f"{where}: input {spec} has open sizes; give its shape")
    return tuple(int(size) for size in spec.shape)
