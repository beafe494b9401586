"""OpenVINO on a CPU as a `Runner`, at the precision that is written in the file and not at what is fastest."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from exporters.artifact import ExportError, IOSpec, read_metadata
from exporters.base import Feeds, FileRunner, LayerSamples, check_feeds, fix_shapes
from exporters.onnx_file import first_line, graph_precision, load_graph
from exporters.openvino_ir import SUFFIX, check_weights


class OpenVinoRunner(FileRunner):
    """Runs the ONNX (or OpenVINO IR) file at `path` with `threads` threads, one stream, for latency.

    Floating-point arithmetic is fp32, also for fp16 files and for what int8 files leave in float: on CPUs with AMX
    OpenVINO would otherwise compute fp32 models in bf16 and say nothing. `versions["inference_precision"]` states it.
    """

    name = "openvino"
    _request: Any = None
    _compile: Callable[[bool], Any] | None = None

    @property
    def precision(self) -> str:
        """Looked up when asked, because parsing the file again would count in a measurement of memory."""
        if self._precision is None:
            stated = read_metadata(self.path).get("precision")
            if self.path.suffix == SUFFIX:
                return stated or "fp32"
            self._precision = stated or graph_precision(load_graph(self.path))
        return self._precision

    def __enter__(self) -> OpenVinoRunner:
        openvino = _import_openvino()
        if not self.path.is_file():
            raise ExportError(f"{self.path}: no such file")
        if self.path.suffix == SUFFIX:
            check_weights(self.path)
        core = openvino.Core()
        try:
            model = core.read_model(str(self.path))
            self.inputs = fix_shapes(_specs(model.inputs), self._shapes, where=str(self.path))
            model.reshape({spec.name: list(spec.shape) for spec in self.inputs})
            options: dict[str, Any] = {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": self.threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
            }
            compiled = core.compile_model(model, "CPU", options)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(f"{self.path}: openvino cannot load it ({_reason(error)})") from error
        self.outputs = _specs(compiled.outputs)
        self.versions = {
            "openvino": openvino.__version__,
            "inference_precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        }
        self._request = compiled.create_infer_request()
        self._compile = lambda counters: core.compile_model(model, "CPU", options | {"PERF_COUNT": counters})
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        self._request = self._compile = None

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        check_feeds(feeds, self.inputs, where=str(self.path))
        request = self._opened()
        results = request.infer({name: np.ascontiguousarray(array) for name, array in feeds.items()})
        return {spec.name: results[index] for index, spec in enumerate(self.outputs)}

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """Bind the inputs; the returned function infers in place, in the calling thread, and copies no result.

        Started and waited for, an inference would be handed to another thread first: 0.35 of 3.0 ms of a ResNet-18 were
        that, and OpenVINO's own benchmark_app, which infers synchronously too, was quicker by as much.
        """
        import openvino

        check_feeds(feeds, self.inputs, where=str(self.path))
        request = self._opened().get_compiled_model().create_infer_request()
        for name, array in feeds.items():
            request.set_tensor(name, openvino.Tensor(np.array(array, order="C")))

        return functools.partial(request.infer, share_outputs=True)

    def profile_layers(self, feeds: Feeds, runs: int) -> list[LayerSamples]:
        """What OpenVINO's counters say of each executed node, in a model compiled with them; microsecond steps."""
        import openvino

        check_feeds(feeds, self.inputs, where=str(self.path))
        assert self._compile is not None, "use the runner inside `with`"
        request = self._compile(True).create_infer_request()
        for name, array in feeds.items():
            request.set_tensor(name, openvino.Tensor(np.array(array, order="C")))
        times: dict[tuple[str, str], list[int]] = {}
        for _ in range(runs):
            request.infer()
            for node in request.get_profiling_info():
                if node.status == openvino.ProfilingInfo.Status.EXECUTED:
                    nanoseconds = round(node.real_time.total_seconds() * 1e9)
                    times.setdefault((node.node_name, f"{node.node_type} ({node.exec_type})"), []).append(nanoseconds)
        return [(name, operator, np.array(samples, np.int64)) for (name, operator), samples in times.items()]

    def synchronize(self) -> None:
        """Nothing to wait for on a CPU."""

    def _opened(self) -> Any:
        assert self._request is not None, "use the runner inside `with`"
        return self._request


def _import_openvino() -> Any:
    """Import openvino without its telemetry, which sends an event at import; a stub of its own takes the place."""
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        # None makes `import openvino_telemetry` fail, which openvino is prepared for.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules["openvino_telemetry"]
    import openvino

    return openvino


def _specs(ports: Any) -> tuple[IOSpec, ...]:
    return tuple(
        IOSpec(
            name=port.get_any_name(),
            dtype=np.dtype(port.get_element_type().to_dtype()).name,
            shape=tuple(
                size.get_length() if size.is_static else f"{port.get_any_name()}_{axis}"
                for axis, size in enumerate(port.get_partial_shape())
            ),
        )
        for port in ports
    )


def _reason(error: BaseException) -> str:
    """OpenVINO's messages begin with the C++ lines that threw; the reason is in the last line that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
