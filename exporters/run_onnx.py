"""ONNX Runtime as a `Runner`: its CPU provider. Those for GPUs are in `exporters.run_onnx_gpu`."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from exporters.artifact import ExportError, IOSpec, parse_metadata
from exporters.base import Feeds, FileRunner, LayerSamples, check_feeds, fix_shapes
from exporters.onnx_file import first_line, graph_precision, load_graph
from exporters.onnx_providers import CPU, assigned


class OnnxRuntimeRunner(FileRunner):
    """Runs the ONNX file at `path` on the CPU with `threads` threads.

    `shapes` fills open sizes. `precision` is only reported; by default it is read from the file's metadata or graph.
    """

    name = "onnxruntime"
    provider = CPU
    _session: Any = None
    _reopen: Callable[[str], Any] | None = None

    @property
    def precision(self) -> str:
        """Looked up when asked, because parsing a foreign file's graph would count in a measurement of memory."""
        if self._precision is None:
            metadata = {} if self._session is None else self._session.get_modelmeta().custom_metadata_map
            stated = parse_metadata(metadata, where=str(self.path)).get("precision")
            self._precision = stated or graph_precision(load_graph(self.path))
        return self._precision

    def __enter__(self) -> OnnxRuntimeRunner:
        # Read when the library is loaded; afterwards it is too late to keep it from writing telemetry to ~/.cache.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort

        if not self.path.is_file():
            raise ExportError(f"{self.path}: no such file")
        if self.provider not in ort.get_available_providers():
            raise ExportError(
                f"{self.path}: this onnxruntime has no {self.provider}; pip install 'edgestill[ort-gpu]' in place of "
                "[ort]"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Workers spin while a run lasts (without it, 8 small convolutions took 0.59 ms instead of 0.56 on two threads),
        # and stop with it: left alone they burned 29 ms of processor time in the 50 ms after a run, at the cost of
        # whatever is measured next. Stopping them cost nothing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = self._open(ort, options)
            fixed = fix_shapes(_specs(session.get_inputs()), self._shapes, where=str(self.path))
            if fixed != _specs(session.get_inputs()):
                for argument, spec in zip(session.get_inputs(), fixed, strict=True):
                    for open_size, size in zip(argument.shape, spec.shape, strict=True):
                        if isinstance(open_size, str):
                            options.add_free_dimension_override_by_name(open_size, size)
                session = self._open(ort, options)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(f"{self.path}: onnxruntime cannot load it ({first_line(error)})") from error
        if session.get_providers()[0] != self.provider:
            ran = session.get_providers()[0]
            raise ExportError(
                f"{self.path}: asked onnxruntime for {self.provider}, but it runs on {ran}; look at its driver"
            )
        self._session = session
        self._reopen = functools.partial(self._open_profiled, ort, options)
        self.inputs = fixed
        self.outputs = _specs(session.get_outputs())
        self.versions = {"onnxruntime": ort.__version__, "provider": self.provider}
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        self._session = self._reopen = None

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        check_feeds(feeds, self.inputs, where=str(self.path))
        results = self._opened().run(None, dict(feeds))
        return {spec.name: np.asarray(result) for spec, result in zip(self.outputs, results, strict=True)}

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """Bind inputs and outputs on the device; the returned function then copies nothing to or from the host."""
        import onnxruntime as ort

        check_feeds(feeds, self.inputs, where=str(self.path))
        session = self._opened()
        binding = session.io_binding()
        for name, array in feeds.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.home, self._index)
            binding.bind_ortvalue_input(name, value)
        for spec in self.outputs:
            binding.bind_output(spec.name, self.home, self._index)
        return functools.partial(session.run_with_iobinding, binding)

    def synchronize(self) -> None:
        """Nothing to wait for: `run` and `run_with_iobinding` return when the results are there."""

    def profile_layers(self, feeds: Feeds, runs: int) -> list[LayerSamples]:
        """What ONNX Runtime's own profiler says of each node, in a session of its own; microsecond steps."""
        events = self._profiled(feeds, runs)
        times: dict[tuple[str, str], list[int]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                key = (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
                times.setdefault(key, []).append(1000 * int(event["dur"]))
        return [(name, operator, np.array(samples, np.int64)) for (name, operator), samples in times.items()]

    def nodes_by_provider(self, feeds: Feeds) -> dict[str, dict[str, str]]:
        """Provider -> node -> operator, of all that ran once on `feeds`, in a session of its own."""
        return assigned(self._profiled(feeds, 1))

    def _profiled(self, feeds: Feeds, runs: int) -> list[dict[str, Any]]:
        check_feeds(feeds, self.inputs, where=str(self.path))
        assert self._reopen is not None, "use the runner inside `with`"
        with tempfile.TemporaryDirectory(prefix="edgestill-") as folder:
            session = self._reopen(str(Path(folder) / "profile"))
            for _ in range(runs):
                session.run(None, dict(feeds))
            return json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))

    def _providers(self) -> list[tuple[str, dict[str, Any]]]:
        return [(self.provider, {})]

    def _open(self, ort: Any, options: Any) -> Any:
        return ort.InferenceSession(str(self.path), options, providers=self._providers())

    def _open_profiled(self, ort: Any, options: Any, prefix: str) -> Any:
        options.enable_profiling, options.profile_file_prefix = True, prefix
        try:
            return self._open(ort, options)
        finally:
            options.enable_profiling = False

    def _opened(self) -> Any:
        assert self._session is not None, "use the runner inside `with`"
        return self._session


def _specs(arguments: list[Any]) -> tuple[IOSpec, ...]:
    return tuple(
        IOSpec(
            name=argument.name,
            dtype=_dtype(argument.type),
            # A size without a name comes as None.
            shape=tuple(
                f"{argument.name}_{axis}" if size is None else size for axis, size in enumerate(argument.shape)
            ),
        )
        for argument in arguments
    )


def _dtype(kind: str) -> str:
    """`tensor(float)` as NumPy names it."""
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)
