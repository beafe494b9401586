"""Running engines: the runner over a driver that keeps device memory on the host, and, where there is a GPU that
the edition serves, the real thing (marked gpu)."""

import ctypes
import sys

import numpy as np
import pytest
import torch
from exporter_nets import INPUT_SHAPE, feeds, file, net
from tensorrt_fakes import engine, fake_trt, install

import exporters
from exporters import open_runner, unavailable
from exporters.artifact import ExportError, IOSpec
from exporters.cuda_driver import Cuda, CudaError, capability, device_count
from exporters.run_tensorrt import Memory, TensorRtRtxRunner, TensorRtRunner
from exporters.tensorrt_cache import cache_folder

VERSIONS = ("10.3.0", "11.4.0")


@pytest.fixture(params=VERSIONS)
def machine(request, monkeypatch, tmp_path):
    """A driver and a TensorRT that are not there; the driver is returned."""
    return install(request.param, monkeypatch, tmp_path)


def expected(batch):
    with torch.no_grad():
        return net()(torch.from_numpy(batch["input"])).numpy()


def test_an_engine_gives_what_torch_gives(machine, tmp_path):
    first, second = feeds(2)
    with open_runner("tensorrt", engine(tmp_path), threads=3, device="cuda:0") as runner:
        assert (runner.name, runner.device, runner.precision, runner.threads) == ("tensorrt", "cuda:0", "fp32", 3)
        assert runner.inputs == (IOSpec(name="input", dtype="float32", shape=INPUT_SHAPE),)
        assert runner.outputs == (IOSpec(name="logits", dtype="float32", shape=(2, 5)),)
        kept = runner(first)["logits"]
        np.testing.assert_allclose(kept, expected(first), rtol=0, atol=1e-5)
        np.testing.assert_allclose(runner(second)["logits"], expected(second), rtol=0, atol=1e-5)
        np.testing.assert_allclose(kept, expected(first), rtol=0, atol=1e-5)
        assert runner.versions["cuda_graph"] == "not tried" and runner.versions["gpu"] == "Fake GPU (8.7)"
        assert runner.versions["cuda_driver"] == "12.6"
    assert machine.blocks == {}, "all device memory is freed"


def test_a_prepared_inference_is_a_graph_with_inputs_of_its_own(machine, tmp_path):
    first, second = feeds(2)
    with TensorRtRunner(engine(tmp_path), threads=1) as runner:
        infer = runner.prepare(first)
        assert runner.versions["cuda_graph"] == "captured"
        before = runner(second)["logits"]
        launches = machine.calls.count("cuGraphLaunch")
        for _ in range(3):
            infer()
        runner.synchronize()
        assert machine.calls.count("cuGraphLaunch") == launches + 3
        np.testing.assert_array_equal(runner(second)["logits"], before)


def test_a_graph_that_cannot_be_captured_is_said_and_enqueued_instead(monkeypatch, tmp_path):
    driver = install("10.3.0", monkeypatch, tmp_path, captures=False)
    first, second = feeds(2)
    with TensorRtRunner(engine(tmp_path), threads=1) as runner:
        infer = runner.prepare(first)
        assert runner.versions["cuda_graph"] == (
            "not captured (cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)"
        )
        infer()
        runner.synchronize()
        np.testing.assert_allclose(runner(second)["logits"], expected(second), rtol=0, atol=1e-5)
    assert "cuGraphLaunch" not in driver.calls and driver.blocks == {}


def test_an_onnx_file_is_built_once_and_kept(machine, tmp_path):
    batch = feeds(1)[0]
    built = sys.modules["tensorrt"].built
    for _ in range(2):
        with open_runner("tensorrt", file("fp32"), threads=1, device="cuda:0") as runner:
            np.testing.assert_allclose(runner(batch)["logits"], expected(batch), rtol=0, atol=1e-5)
    assert len(built) == 1
    assert cache_folder() == tmp_path / "cache" / "engines"
    (kept,) = cache_folder().glob("*.engine")
    kept.write_bytes(b"cut short")
    with open_runner("tensorrt", file("fp32"), threads=1, device="cuda:0"):
        assert len(built) == 2, "an engine that is not what its sidecar says is built again"
    with open_runner("tensorrt", file("dynamic"), threads=1, device="cuda:0", shapes=(4, 3, 16, 16)) as runner:
        assert runner.inputs[0].shape == (4, 3, 16, 16) and runner.outputs[0].shape == (4, 5)


def test_sizes_that_a_profile_leaves_open(machine, tmp_path):
    path = engine(tmp_path, "dynamic", profiles=((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16)))
    with TensorRtRunner(path, threads=1, shapes=(3, 3, 16, 16)) as runner:
        assert runner.outputs[0].shape == (3, 5)
    with (
        pytest.raises(ExportError) as error,
        TensorRtRunner(path, threads=1, shapes=(5, 3, 16, 16)),
    ):
        pass
    assert str(error.value) == (
        f"{path}: input: float32[5, 3, 16, 16] is outside its profile, [1, 3, 16, 16] to [4, 3, 16, 16]"
    )
    assert machine.blocks == {}


@pytest.mark.parametrize(("version", "weights"), [("8.6.2", False), ("10.3.0", False), ("11.4.0", True)])
def test_memory_and_layers_by_tensorrts_own_counters(version, weights, monkeypatch, tmp_path):
    install("11.4.0", monkeypatch, tmp_path)
    path = engine(tmp_path)
    module = fake_trt(version)
    module.__version__ = "11.4.0"  # the engine's, so that only the shape of the module differs
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with TensorRtRunner(path, threads=1) as runner:
        memory = runner.memory()
        assert memory == Memory(
            activations_bytes=4096, weights_bytes=memory.weights_bytes, tensors_bytes=4 * (2 * 3 * 256 + 10)
        )
        assert (memory.weights_bytes is not None) == weights
        assert '"Layers"' in runner.layers()


@pytest.mark.parametrize("method", ["__call__", "prepare"])
def test_wrong_feeds_are_one_line(machine, tmp_path, method):
    path = engine(tmp_path)
    with TensorRtRunner(path, threads=1) as runner, pytest.raises(ExportError) as error:
        getattr(runner, method)({"input": np.zeros((3, 16, 16), np.float32)})
    assert str(error.value) == f"{path}: input 'input' got float32[3, 16, 16]; expected input: float32[2, 3, 16, 16]"


def test_engines_of_others_are_refused(machine, monkeypatch, tmp_path):
    path = engine(tmp_path)
    version = sys.modules["tensorrt"].__version__
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt("10.7.0"))
    with pytest.raises(ExportError) as error, TensorRtRunner(path, threads=1):
        pass
    assert str(error.value) == (
        f"{path}: built by tensorrt {version}, but 10.7.0 is installed; build it again, or with version_compatible"
    )
    assert machine.blocks == {}
    compatible = engine(tmp_path, version_compatible=True)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt("10.9.0"))
    with TensorRtRunner(compatible, threads=1) as runner:
        assert runner.versions["tensorrt"] == "10.9.0"


def test_devices_that_are_not_there_are_refused(machine, tmp_path):
    path = engine(tmp_path)
    with pytest.raises(ExportError) as error:
        TensorRtRunner(path, threads=1, device="cpu")
    assert str(error.value) == f"{path}: tensorrt runs on cuda:N; got device 'cpu'"
    with pytest.raises(ExportError) as error, TensorRtRunner(path, threads=1, device="cuda:4"):
        pass
    assert str(error.value) == (
        f"{path}: tensorrt on cuda:4: cuDeviceGet: CUDA_ERROR_INVALID_DEVICE; look at nvidia-smi"
    )
    with pytest.raises(ExportError) as error, TensorRtRunner(tmp_path / "none.engine", threads=1):
        pass
    assert str(error.value) == f"{tmp_path / 'none.engine'}: no such file"


def test_a_closed_runner_is_a_programming_error(machine, tmp_path):
    with TensorRtRunner(engine(tmp_path), threads=1) as runner:
        pass
    runner.inputs = ()
    with pytest.raises(AssertionError, match="use the runner inside `with`"):
        runner({})


def test_without_a_gpu_rtx_is_said_to_build_and_not_to_run():
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; pip install 'edgestill[test]'")
    if device_count():
        pytest.skip("an NVIDIA GPU is here")
    assert unavailable("tensorrt-rtx") == "builds here, needs an NVIDIA GPU to run"
    assert unavailable("tensorrt-rtx", "cuda:0") == "builds here, needs an NVIDIA GPU to run"
    with pytest.raises(ExportError) as error:
        open_runner("tensorrt-rtx", file("fp32"), threads=1, device="cuda:0")
    assert str(error.value) == "tensorrt-rtx: builds here, needs an NVIDIA GPU to run"
    runner = TensorRtRtxRunner(file("fp32"), threads=1)
    with pytest.raises(ExportError) as error, runner:
        pass
    assert str(error.value) == f"{file('fp32')}: tensorrt-rtx needs an NVIDIA GPU; no driver is seen here"


def test_rtx_says_which_gpus_it_does_not_serve(monkeypatch, tmp_path):
    install("11.4.0", monkeypatch, tmp_path)
    monkeypatch.setitem(exporters.PACKAGES, "tensorrt-rtx", ("json", "tensorrt-rtx"))
    assert exporters.unavailable("tensorrt-rtx", "cuda:0") == (
        "tensorrt-rtx serves compute capabilities 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; cuda:0 has 8.7"
    )
    monkeypatch.setitem(exporters.SERVED, "tensorrt-rtx", ("8.7",))
    assert exporters.unavailable("tensorrt-rtx", "cuda:0") is None


def test_what_rtx_serves_is_what_the_installed_one_builds_for():
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; pip install 'edgestill[test]'")
    names = {f"SM{capability.replace('.', '')}" for capability in exporters.SERVED["tensorrt-rtx"]}
    assert names == set(trt.ComputeCapability.__members__) - {"NONE", "CURRENT"}


@pytest.mark.gpu
def test_the_driver_copies_and_captures():
    if not device_count():
        pytest.skip("no NVIDIA GPU is seen here")
    cuda = Cuda()
    try:
        values = np.arange(1000, dtype=np.float32)
        back = np.zeros_like(values)
        pointer = cuda.allocate(values.nbytes)
        cuda.to_device(pointer, values)
        cuda.to_host(back, pointer)
        cuda.synchronize()
        np.testing.assert_array_equal(back, values)
        fill = (pointer, ctypes.c_ubyte(0), ctypes.c_size_t(values.nbytes), ctypes.c_void_p(cuda.stream))
        launch = cuda.capture(lambda: cuda._call("cuMemsetD8Async", ctypes.c_uint64(fill[0]), *fill[1:]))
        launch()
        cuda.to_host(back, pointer)
        cuda.synchronize()
        np.testing.assert_array_equal(back, np.zeros_like(values))
        assert cuda.name and "." in (capability() or "") and "." in cuda.driver and cuda.free_bytes() > 0
        with pytest.raises(CudaError, match="cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY"):
            cuda.allocate(1 << 50)
    finally:
        cuda.close()
        cuda.close()


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["fp32", "fp16", "portable"])
@pytest.mark.parametrize("name", ["tensorrt-rtx", "tensorrt"])
def test_engines_run_on_a_real_gpu(name, form, monkeypatch, tmp_path):
    if reason := unavailable(name, "cuda:0"):
        pytest.skip(f"{name}: {reason}")
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path))
    first, second = feeds(2)
    with open_runner(name, file(form), threads=1, device="cuda:0") as runner:
        scale = np.abs(expected(first)).max()
        tolerance = {"fp32": 1e-4, "fp16": 1e-2, "portable": 0.2}[form] * scale
        np.testing.assert_allclose(runner(first)["logits"], expected(first), rtol=0, atol=tolerance)
        infer = runner.prepare(first)
        infer()
        runner.synchronize()
        assert runner.versions["cuda_graph"] != "not tried"
        np.testing.assert_allclose(runner(second)["logits"], expected(second), rtol=0, atol=tolerance)
        assert runner.memory().tensors_bytes > 0
