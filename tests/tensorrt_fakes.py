"""What no machine of the tests has: TensorRT 8.6, 10.x and 11.x.

The three modules have the names that each edition has and lack those it lacks. A fake engine carries its ONNX file, and
executing it runs that file on onnxruntime over the memory of `cuda_fakes`, so that addresses, copies, streams and
captured graphs must be right for the results to be.
"""

import ctypes
import enum
import importlib.machinery
import io
import json
import sys
import types

import numpy as np
import onnx
from cuda_fakes import DRIVERS, FakeDriver
from exporter_nets import file
from onnx import TensorProto

from exporters.tensorrt_api import edition_of, probe
from exporters.tensorrt_engine import read_sidecar
from exporters.tensorrt_options import BuildOptions
from exporters.to_tensorrt import build_engine

INT64_WARNING = (
    "onnx2trt_utils.cpp:372: Your ONNX model has been generated with INT64 weights, while TensorRT does not natively "
    "support INT64. Attempting to cast down to INT32."
)


DataType = enum.IntEnum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "INT64", "BF16"], start=0)
LayerType = enum.IntEnum("LayerType", ["CONVOLUTION", "MATRIX_MULTIPLY", "DEQUANTIZE", "QUANTIZE", "OTHER"], start=0)
_TYPES = {TensorProto.FLOAT: DataType.FLOAT, TensorProto.FLOAT16: DataType.HALF, TensorProto.INT8: DataType.INT8}
_LAYERS = {
    "Conv": LayerType.CONVOLUTION,
    "Gemm": LayerType.MATRIX_MULTIPLY,
    "DequantizeLinear": LayerType.DEQUANTIZE,
    "QuantizeLinear": LayerType.QUANTIZE,
}


class Tensor(types.SimpleNamespace):
    pass


class Layer:
    def __init__(self, node, kinds) -> None:
        self.name, self.type = node.name, _LAYERS.get(node.op_type, LayerType.OTHER)
        self._inputs = [Tensor(name=n, dtype=kinds.get(n, DataType.FLOAT)) for n in node.input if n]
        # Plain weights of a convolution are part of the layer and no input of it.
        if node.op_type == "Conv":
            self._inputs = [t for t in self._inputs if t.name not in kinds["constants"]]
        self._outputs = [Tensor(name=n, dtype=kinds.get(n, DataType.FLOAT)) for n in node.output]
        self.num_inputs, self.num_outputs = len(self._inputs), len(self._outputs)

    def get_input(self, index):
        return self._inputs[index]

    def get_output(self, index):
        return self._outputs[index]


class Network:
    def __init__(self, flags) -> None:
        self.flags, self.layers, self.data = flags, [], b""

    def load(self, model) -> None:
        self.data = model.SerializeToString()
        inferred = onnx.shape_inference.infer_shapes(model)
        kinds: dict = {"constants": {tensor.name for tensor in model.graph.initializer}}
        for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
            kinds[value.name] = _TYPES.get(value.type.tensor_type.elem_type, DataType.INT64)
        for tensor in model.graph.initializer:
            kinds[tensor.name] = _TYPES.get(tensor.data_type, DataType.INT64)
        self.layers = [Layer(node, kinds) for node in model.graph.node]

    @property
    def num_layers(self):
        return len(self.layers)

    def get_layer(self, index):
        return self.layers[index]


class Config:
    def __init__(self, trt) -> None:
        self.flags, self.pools, self.profiles, self.cache = {trt.BuilderFlag.TF32}, {}, [], None
        self.profiling_verbosity = self.hardware_compatibility_level = None

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return None if data and not data.startswith(b"timings") else types.SimpleNamespace(data=data)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self):
        return types.SimpleNamespace(serialize=lambda: b"timings " + self.cache.data[8:] + b".")


class Profile:
    def __init__(self) -> None:
        self.shapes = {}

    def set_shape(self, name, least, best, most):
        self.shapes[name] = (least, best, most)


def fake_trt(version: str, *, warnings: tuple[str, ...] = (), inspector: str = "Half", fails: str = ""):
    """A module in the shape of TensorRT `version` ("8.6.2", "10.3.0", "11.4.0").

    `warnings` are said while building; `inspector` is the type that the inspector gives convolutions; `fails` is the
    error with which the builder gives up.
    """
    major = int(version.split(".", maxsplit=1)[0])
    trt = types.ModuleType(f"tensorrt_{major}")
    trt.__version__ = version
    trt.built = []
    trt.__spec__ = importlib.machinery.ModuleSpec(trt.__name__, None)
    flags = ["TF32", "REFIT", "VERSION_COMPATIBLE"]
    flags += ["FP16", "INT8"] if major < 11 else []
    creation = {8: ["EXPLICIT_BATCH"], 10: ["EXPLICIT_BATCH", "STRONGLY_TYPED"], 11: ["STRONGLY_TYPED", "PREFER_JIT"]}
    trt.BuilderFlag = enum.IntEnum("BuilderFlag", flags, start=0)
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", creation[major], start=0)
    levels = ["NONE", "AMPERE_PLUS"] + (["SAME_COMPUTE_CAPABILITY"] if major > 8 else [])
    trt.HardwareCompatibilityLevel = enum.IntEnum("HardwareCompatibilityLevel", levels, start=0)
    trt.MemoryPoolType = enum.IntEnum("MemoryPoolType", ["WORKSPACE", "TACTIC_DRAM"], start=0)
    trt.ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", ["NONE", "DETAILED"], start=0)
    trt.LayerInformationFormat = enum.IntEnum("LayerInformationFormat", ["ONELINE", "JSON"], start=0)
    trt.EngineStat = enum.IntEnum("EngineStat", ["TOTAL_WEIGHTS_SIZE"], start=0)
    severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"], start=0)
    trt.ILogger = type("ILogger", (), {"Severity": severity})
    trt.IProfiler = type("IProfiler", (), {})

    class Builder:
        def __init__(self, logger) -> None:
            self.logger = logger

        def create_network(self, creation_flags):
            return Network(creation_flags)

        def create_builder_config(self):
            return Config(trt)

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            for line in warnings:
                self.logger.log(severity.WARNING, line)
            if fails:
                self.logger.log(severity.ERROR, fails)
                return None
            trt.built.append((network, config))
            if config.get_timing_cache and config.cache is not None:
                config.cache.data = config.cache.data or b"timings "
            about = {"profiles": config.profiles, "inspector": inspector}
            return json.dumps(about).encode() + b"\0" + network.data

    class OnnxParser:
        num_errors = 0

        def __init__(self, network, logger) -> None:
            self.network, self.logger = network, logger

        def supports_operator(self, name):
            return name != "Unique"

        def parse_from_file(self, path):
            model = onnx.load(path)
            assert major > 8 or model.opset_import[0].version <= 17, "what 8.6 reads beyond 17, it reads wrongly"
            self.network.load(model)
            if major == 8 and any(t.data_type == TensorProto.INT64 for t in model.graph.initializer):
                self.logger.log(severity.WARNING, INT64_WARNING)
            return True

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if b"\0" not in plan:
                self.logger.log(severity.ERROR, "Magic tag does not match")
                return None
            return _engine(plan, major)

    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, OnnxParser, Runtime
    return trt


def install(version, monkeypatch, tmp_path, fails="", **driver):
    """A driver and a TensorRT that are not there; the driver is returned."""
    fake = FakeDriver(**driver)
    monkeypatch.setattr("exporters.cuda_driver.load_driver", lambda: fake)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt(version, fails=fails))
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    return fake


def engine(folder, form="fp32", **options):
    """An engine of one of the files of `exporter_nets`, built by what `install` put in place."""
    path = folder / f"{form}.engine"
    return build_engine(file(form), path, edition=edition_of("tensorrt"), options=BuildOptions(**options)).path


def build(version, form, folder, *, precision=None, options=None, **shape):
    """(artifact, facts of its sidecar, network, config) of a build by TensorRT `version`, made as `shape` says."""
    module = fake_trt(version, **shape)
    edition = probe("tensorrt", module)
    artifact = build_engine(file(form), folder / "m.engine", edition=edition, precision=precision, options=options)
    return artifact, read_sidecar(artifact.path).facts, *module.built[0]


def _engine(plan, major):
    import onnxruntime as ort

    head, _, data = plan.partition(b"\0")
    about = json.loads(head)
    session = ort.InferenceSession(io.BytesIO(data).getvalue(), providers=["CPUExecutionProvider"])
    profile = about["profiles"][0] if about["profiles"] else {}

    class Context:
        profiler = None

        def __init__(self) -> None:
            self.addresses, self.shapes = {}, {}

        def set_input_shape(self, name, shape):
            least, _, most = profile.get(name, (shape, shape, shape))
            self.shapes[name] = tuple(shape)
            return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

        def get_tensor_shape(self, name):
            if name in self.shapes:
                return self.shapes[name]
            zeros = {key: np.zeros(shape, np.float32) for key, shape in self.shapes.items()}
            return dict(zip((o.name for o in session.get_outputs()), session.run(None, zeros), strict=True))[name].shape

        def set_tensor_address(self, name, pointer):
            self.addresses[name] = pointer

        def execute_async_v3(self, stream):
            assert stream == 7
            addresses = dict(self.addresses)
            DRIVERS[-1].run(lambda: self._execute(addresses))
            return True

        def _execute(self, addresses):
            feeds = {}
            for name, shape in self.shapes.items():
                size = int(np.prod(shape)) * 4
                feeds[name] = np.frombuffer(ctypes.string_at(addresses[name], size), np.float32).reshape(shape)
            for spec, array in zip(session.get_outputs(), session.run(None, feeds), strict=True):
                data = np.ascontiguousarray(array).tobytes()
                ctypes.memmove(addresses[spec.name], data, len(data))
            if self.profiler is not None:
                for node in onnx.load_from_string(plan.partition(b"\0")[2]).graph.node:
                    self.profiler.report_layer_time(node.name, 0.25 if node.op_type == "Conv" else 0.125)

    class Inspector:
        execution_context = None

        def get_engine_information(self, form):
            assert form.name == "JSON"
            kind = {"Format/Datatype": f"Channel major {about['inspector']} format"}
            layers = [{"Name": n.name, "LayerType": "CaskConvolution", "Inputs": [kind]}
                      for n in onnx.load_from_string(data).graph.node if n.op_type == "Conv"]  # fmt: skip
            return json.dumps({"Layers": [*layers, {"Name": "relu", "LayerType": "PointWiseV2"}], "Bindings": []})

    class Engine:
        def create_execution_context(self):
            return Context()

        def create_engine_inspector(self):
            return Inspector()

    setattr(Engine, "device_memory_size_v2" if major > 8 else "device_memory_size", 4096)
    if major > 10:
        Engine.get_engine_stat = lambda self, stat: len(data)
    return Engine()
