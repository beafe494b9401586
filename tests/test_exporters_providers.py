"""ONNX Runtime's providers: who ran is read from a profile. CUDA is not here, so a stand-in plays its part in that."""

import functools
import json
from pathlib import Path

import pytest
from cuda_fakes import FakeDriver
from exporter_nets import feeds, file

import exporters
from exporters import open_runner, unavailable
from exporters.artifact import ExportError
from exporters.onnx_providers import assigned, check_ran
from exporters.run_onnx_gpu import CUDA, TENSORRT, OnnxRuntimeCudaRunner, OnnxRuntimeTensorRtRunner

CPU = "CPUExecutionProvider"


def event(name, operator, provider):
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": 1, "args": {"op_name": operator, "provider": provider}}


def test_the_profile_of_a_real_run_names_the_cpu_for_every_node():
    with open_runner("onnxruntime", file("fp32"), threads=1) as runner:
        found = runner.nodes_by_provider(feeds(1)[0])
        assert runner.versions["provider"] == CPU
    assert list(found) == [CPU] and len(found[CPU]) > 8
    assert check_ran(found, CPU, where="m.onnx") == f"{CPU} {len(found[CPU])}"


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (
            [event("conv", "Conv", CPU), event("shape", "Shape", CPU)],
            "no node ran on it (CPUExecutionProvider 2); look at its driver and libraries, or profile on the cpu",
        ),
        (
            [],
            "no node ran on it (nothing ran); look at its driver and libraries, or profile on the cpu",
        ),
        (
            [event("a", "Conv", CUDA), event("b", "QLinearConv", CPU), event("c", "Relu", CUDA)],
            f"node 'b' (QLinearConv) ran on the CPU ({CUDA} 2, {CPU} 1); give a form that {CUDA} has kernels for",
        ),
    ],
)
def test_a_session_that_fell_back_is_an_error(events, message):
    with pytest.raises(ExportError) as error:
        check_ran(assigned(events), CUDA, where="m.onnx")
    assert str(error.value) == f"m.onnx: asked onnxruntime for {CUDA}, but {message}"


def test_nodes_that_compute_shapes_may_stay_on_the_cpu():
    events = [event("a", "Conv", CUDA), event("b", "Shape", CPU), event("c", "Gather", CPU)]
    assert check_ran(assigned(events), CUDA, where="m.onnx") == f"{CPU} 2, {CUDA} 1"


class FakeSession:
    """The real session on the CPU, which says that it has the providers asked for, and whose profile names `ran`."""

    asked, listed, ran = [], None, CUDA

    def __init__(self, real, path, options, providers):
        self.session = real(path, options, providers=[CPU])
        self.providers = [name for name, _ in providers]
        FakeSession.asked.append(providers)

    def __getattr__(self, name):
        return getattr(self.session, name)

    def get_providers(self):
        return self.listed or [*self.providers, CPU]

    def end_profiling(self):
        path = Path(self.session.end_profiling())
        events = json.loads(path.read_text())
        for each in events:
            if each.get("cat") == "Node":
                each["args"]["provider"] = self.ran
        path.write_text(json.dumps(events))
        return str(path)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine that seems to have a GPU, onnxruntime-gpu and TensorRT."""
    import onnxruntime

    FakeSession.asked, FakeSession.listed, FakeSession.ran = [], None, CUDA
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(exporters, "installed_versions", lambda *names: dict.fromkeys(names, "1.0"))
    monkeypatch.setattr("exporters.cuda_driver.device_count", lambda: 1)
    driver = FakeDriver()
    monkeypatch.setattr("exporters.cuda_driver.load_driver", lambda: driver)
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path))
    monkeypatch.setattr("exporters.cuda_driver.capability", lambda index: "8.9")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])

    monkeypatch.setattr(onnxruntime, "InferenceSession", functools.partial(FakeSession, real))
    return FakeSession


def test_cuda_is_asked_for_true_fp32_and_says_who_ran(gpu):
    assert unavailable("onnxruntime-cuda", "cuda:0") is None
    with open_runner("onnxruntime-cuda", file("fp32"), threads=1, device="cuda:0") as runner:
        assert (runner.name, runner.device, runner.precision) == ("onnxruntime-cuda", "cuda:0", "fp32")
        assert runner.versions["provider"] == CUDA and runner.versions["ran_on"].startswith(f"{CUDA} ")
        assert runner(feeds(1)[0])["logits"].shape == (2, 5)
    assert gpu.asked[0] == [(CUDA, {"device_id": "0", "use_tf32": "0"})]


@pytest.mark.parametrize(("form", "fp16", "int8"), [("fp32", "False", "False"), ("fp16", "True", "False")])
def test_tensorrt_may_lower_the_precision_only_as_far_as_the_file_does(gpu, form, fp16, int8):
    gpu.ran = TENSORRT
    with OnnxRuntimeTensorRtRunner(file(form), threads=1, device="cuda:1") as runner:
        assert runner.versions["provider"] == TENSORRT
    name, options = gpu.asked[0][0]
    asked = {"device_id": "1", "trt_fp16_enable": fp16, "trt_int8_enable": int8}
    assert name == TENSORRT and {key: options[key] for key in asked} == asked
    assert [entry[0] for entry in gpu.asked[0]] == [TENSORRT, CUDA]


def test_tensorrts_engines_are_kept_for_what_they_were_built_of(gpu, monkeypatch, tmp_path):
    gpu.ran = TENSORRT

    def folder(form="fp32", name="Fake GPU"):
        driver = FakeDriver(name=name)
        monkeypatch.setattr("exporters.cuda_driver.load_driver", lambda: driver)
        gpu.asked.clear()
        shapes = (2, 3, 16, 16) if form == "dynamic" else None
        with OnnxRuntimeTensorRtRunner(file(form), threads=1, shapes=shapes):
            (options,) = {tuple(sorted(asked[0][1].items())) for asked in gpu.asked}
            assert len(gpu.asked) >= 2, "each session looks in the same folder"
        found = dict(options)
        assert found["trt_engine_cache_enable"] == found["trt_timing_cache_enable"] == "True"
        folders = [Path(found[f"trt_{kind}_cache_path"]) for kind in ("engine", "timing")]
        assert all(folder.is_dir() and folder.parent == tmp_path / "engines" for folder in folders)
        return folders

    first = folder()
    assert folder() == first
    assert folder("dynamic")[0] != first[0] and folder("dynamic")[1] == first[1]
    assert not {*folder(name="Other GPU")} & {*first}


def test_a_session_that_lists_only_the_cpu_is_an_error(gpu):
    gpu.listed = [CPU]
    runner = OnnxRuntimeCudaRunner(file("fp32"), threads=1, device="cuda:0")
    with pytest.raises(ExportError) as error, runner:
        pass
    assert str(error.value) == (
        f"{file('fp32')}: asked onnxruntime for {CUDA}, but it runs on {CPU}; look at its driver"
    )


@pytest.mark.parametrize("runner_class", [OnnxRuntimeCudaRunner, OnnxRuntimeTensorRtRunner])
def test_a_session_that_lists_its_provider_and_runs_on_the_cpu_is_an_error(gpu, runner_class):
    gpu.ran = CPU
    runner = runner_class(file("fp32"), threads=1, device="cuda:0")
    with pytest.raises(ExportError, match=f"asked onnxruntime for {runner_class.provider}, but no node ran on it"):
        runner.__enter__()
    with pytest.raises(AssertionError, match="use the runner inside `with`"):
        runner.inputs = ()
        runner({})


def test_what_is_missing_is_named_in_order(gpu, monkeypatch):
    monkeypatch.setattr("exporters.cuda_driver.device_count", lambda: 0)
    assert unavailable("onnxruntime-cuda", "cuda:0") == "needs an NVIDIA GPU to run; none is seen here"
    monkeypatch.setattr(
        exporters, "installed_versions", lambda *names: {n: "1" for n in names if n == "onnxruntime-gpu"}
    )
    assert unavailable("onnxruntime-tensorrt", "cuda:0") == (
        "tensorrt is not installed; pip install 'edgestill[tensorrt]'"
    )
    monkeypatch.undo()
    with pytest.raises(ExportError) as error, OnnxRuntimeCudaRunner(file("fp32"), threads=1, device="cuda:0"):
        pass
    assert str(error.value) == (
        f"{file('fp32')}: this onnxruntime has no CUDAExecutionProvider; pip install 'edgestill[ort-gpu]' in place of "
        "[ort]"
    )
