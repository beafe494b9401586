"""One contract for every runtime of the table, so that none can exist untested."""

import importlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from exporter_nets import INPUT_SHAPE, feeds, file, net

import exporters
from exporters import CPU_ONLY, GPU_ONLY, MODULE_RUNTIMES, PACKAGES, RUNTIMES, open_runner, unavailable
from exporters.artifact import ExportError, IOSpec, installed_versions
from exporters.run_torch import TorchRunner

FILE_RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(unavailable(name) is not None, reason=f"{name}: {unavailable(name)}"))
    for name in sorted(set(RUNTIMES) - set(MODULE_RUNTIMES))
]
IMAGES = IOSpec(name="input", dtype="float32", shape=INPUT_SHAPE)


def make(runtime, threads=1):
    if runtime in MODULE_RUNTIMES:
        module, _, attribute = RUNTIMES[runtime].partition(":")
        return getattr(importlib.import_module(module), attribute)(net(), threads=threads, input_shape=INPUT_SHAPE)
    return open_runner(runtime, file("fp32"), threads=threads)


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request):
    if reason := unavailable(request.param):
        pytest.skip(reason)
    return request.param


def test_every_runner_gives_what_torch_gives(runtime):
    batch = feeds(1)[0]
    with torch.no_grad():
        expected = net()(torch.from_numpy(batch["input"])).numpy()
    with make(runtime) as runner:
        got = runner(batch)
        assert (runner.name, runner.device, runner.precision, runner.threads) == (runtime, "cpu", "fp32", 1)
        assert runner.inputs == (IMAGES,)
        assert runner.outputs == (IOSpec(name="logits", dtype="float32", shape=(2, 5)),)
        assert runner.versions[runtime]
    assert list(got) == ["logits"] and isinstance(got["logits"], np.ndarray)
    # 1e-5 of logits near 1: bf16, which OpenVINO takes when it is not told otherwise, would be a thousand times that.
    np.testing.assert_allclose(got["logits"], expected, rtol=0, atol=1e-5)


def test_results_outlive_the_next_call(runtime):
    first, second = feeds(2)
    with make(runtime) as runner:
        kept = runner(first)["logits"]
        copy = kept.copy()
        runner(second)
        np.testing.assert_array_equal(kept, copy)


def test_prepared_inference_can_be_repeated_and_mixed_with_calls(runtime):
    first, second = feeds(2)
    with make(runtime) as runner:
        infer = runner.prepare(first)
        before = runner(second)["logits"]
        for _ in range(3):
            infer()
        runner.synchronize()
        np.testing.assert_array_equal(runner(second)["logits"], before)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image": np.zeros(INPUT_SHAPE, np.float32)}, "got inputs ['image']; expected ['input']"),
        ({}, "got inputs []; expected ['input']"),
        (
            {"input": np.zeros(INPUT_SHAPE)},
            "input 'input' got float64[2, 3, 16, 16]; expected input: float32[2, 3, 16, 16]",
        ),
        (
            {"input": np.zeros((3, 16, 16), np.float32)},
            "input 'input' got float32[3, 16, 16]; expected input: float32[2, 3, 16, 16]",
        ),
    ],
)
@pytest.mark.parametrize("method", ["__call__", "prepare"])
def test_wrong_feeds_are_one_line(runtime, bad, message, method):
    with make(runtime) as runner, pytest.raises(ExportError) as error:
        getattr(runner, method)(bad)
    where = runtime if runtime in MODULE_RUNTIMES else file("fp32")
    assert str(error.value) == f"{where}: {message}"


def test_a_closed_runner_is_a_programming_error(runtime):
    runner = make(runtime)
    with runner:
        pass
    runner.inputs = ()
    with pytest.raises(AssertionError, match="use the runner inside `with`"):
        runner._infer(torch.zeros(INPUT_SHAPE)) if runtime in MODULE_RUNTIMES else runner({})


def test_the_table_and_the_packages_agree():
    assert set(PACKAGES) == set(RUNTIMES)
    assert {*MODULE_RUNTIMES, *CPU_ONLY, *GPU_ONLY} == set(RUNTIMES), "each has its place"
    for target in RUNTIMES.values():
        module, _, attribute = target.partition(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), type)


@pytest.mark.parametrize("runtime_name", FILE_RUNTIMES)
def test_open_sizes_need_shapes(runtime_name):
    with pytest.raises(ExportError) as error, open_runner(runtime_name, file("dynamic"), threads=1):
        pass
    assert str(error.value).endswith("has open sizes; give --input 1,3,224,224")
    assert str(error.value).startswith(f"{file('dynamic')}: input input: float32[")
    with open_runner(runtime_name, file("dynamic"), threads=1, shapes={"input": (4, 3, 16, 16)}) as runner:
        assert runner.inputs[0].shape == (4, 3, 16, 16) and runner.outputs[0].shape == (4, 5)


@pytest.mark.parametrize("runtime_name", FILE_RUNTIMES)
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((1, 3, 32, 32), "--input 1,3,32,32 does not fit input input: float32[2, 3, 16, 16]"),
        ({"pixels": (2, 3, 16, 16)}, "no input named 'pixels'; its inputs are ['input']"),
    ],
)
def test_shapes_that_contradict_the_model_are_refused(runtime_name, shapes, message):
    with pytest.raises(ExportError) as error, open_runner(runtime_name, file("fp32"), threads=1, shapes=shapes):
        pass
    assert str(error.value) == f"{file('fp32')}: {message}"


@pytest.mark.parametrize("runtime_name", FILE_RUNTIMES)
def test_files_that_cannot_be_loaded_are_one_line(runtime_name, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(file("fp32").read_bytes()[:-2000])
    with (
        pytest.raises(ExportError, match=rf"broken\.onnx: {runtime_name} cannot load it \(.+\)$") as error,
        open_runner(runtime_name, broken, threads=1),
    ):
        pass
    assert "\n" not in str(error.value)
    with pytest.raises(ExportError) as error, open_runner(runtime_name, tmp_path / "none.onnx", threads=1):
        pass
    assert str(error.value) == f"{tmp_path / 'none.onnx'}: no such file"


@pytest.mark.parametrize("runtime_name", FILE_RUNTIMES)
@pytest.mark.parametrize("form", ["fp16", "portable"])
def test_the_precision_of_a_foreign_file_is_read_from_its_graph(runtime_name, form, tmp_path):
    model = onnx.load(str(file(form)))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    with open_runner(runtime_name, tmp_path / "foreign.onnx", threads=1) as runner:
        assert runner.precision == {"fp16": "fp16", "portable": "int8"}[form]


def test_openvino_is_told_to_stay_in_fp32_and_sends_nothing():
    if reason := unavailable("openvino"):
        pytest.skip(reason)
    with open_runner("openvino", file("fp32"), threads=1) as runner:
        assert runner.versions["inference_precision"] == "f32"
    code = "from exporters.run_openvino import _import_openvino; import sys; _import_openvino()\n"
    code += "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(ExportError, match=r"onnxruntime runs on the cpu; got device 'npu'$"):
        open_runner("onnxruntime", file("fp32"), threads=1, device="npu")
    with pytest.raises(ExportError, match=r"openvino runs on the cpu; got device 'cuda:0'$"):
        open_runner("openvino", file("fp32"), threads=1, device="cuda:0")
    with pytest.raises(ExportError, match=r"onnxruntime runs on the cpu; got device 'cuda:0'$"):
        open_runner("onnxruntime", file("fp32"), threads=1, device="cuda:0")


def test_unknown_and_missing_runtimes_are_named(monkeypatch):
    with pytest.raises(ExportError) as error:
        unavailable("tflite")
    files = "onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, openvino, tensorrt, tensorrt-rtx"
    assert str(error.value) == f"unknown runtime 'tflite'; known: {files}, torch, torch-compile"
    for name in MODULE_RUNTIMES:
        with pytest.raises(ExportError) as error:
            open_runner(name, "m.onnx", threads=1)
        assert str(error.value) == f"m.onnx: {name} does not run ONNX files; use one of {files}"
    monkeypatch.setitem(exporters.PACKAGES, "openvino", ("no_such_package", "openvino"))
    with pytest.raises(ExportError) as error:
        open_runner("openvino", "m.onnx", threads=1)
    assert str(error.value) == "openvino: no_such_package is not installed; pip install 'edgestill[openvino]'"


def test_asking_what_there_is_imports_nothing_heavy():
    code = "import sys, exporters; [exporters.unavailable(name) for name in exporters.RUNTIMES]\n"
    code += "print([name for name in ('torch', 'onnx', 'onnxruntime', 'openvino') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_torch_casts_a_copy_and_puts_threads_back(precision, channels_last):
    before = torch.get_num_threads()
    batch = feeds(1)[0]
    with make("torch") as single:
        expected = single(batch)["logits"]
    runner = TorchRunner(
        net(), threads=before + 1, input_shape=INPUT_SHAPE, precision=precision, channels_last=channels_last
    )
    with runner:
        assert torch.get_num_threads() == before + 1
        got = runner(batch)["logits"]
        assert got.dtype == np.float32
    assert torch.get_num_threads() == before
    assert {weight.dtype for weight in net().parameters()} == {torch.float32}
    assert 0 < np.abs(got - expected).max() < 0.1


def test_torch_refuses_what_it_cannot_run():
    with pytest.raises(ExportError) as error:
        TorchRunner(net(), threads=1, input_shape=INPUT_SHAPE, precision="int8")
    assert str(error.value) == "torch: precision 'int8' cannot be run; known: fp32, bf16, fp16, int8-linear"
    if not torch.cuda.is_available():
        with pytest.raises(ExportError) as error:
            TorchRunner(net(), threads=1, input_shape=INPUT_SHAPE, device="cuda:0")
        assert str(error.value) == ("torch: got device 'cuda:0', but torch sees no GPU; use cpu or look at the driver")

    class Pair(torch.nn.Module):
        def forward(self, images):
            return images, images

    before = torch.get_num_threads()
    with pytest.raises(ExportError) as error, TorchRunner(Pair(), threads=before + 1, input_shape=INPUT_SHAPE):
        pass
    assert str(error.value) == "torch: the model returned tuple; a runner needs one tensor"
    assert torch.get_num_threads() == before


def test_a_network_that_does_not_take_the_size_is_one_line_and_leaves_nothing_changed() -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    with (
        pytest.raises(ExportError) as error,
        TorchRunner(torch.nn.Linear(4, 2), threads=before[0] + 1, input_shape=(1, 3)),
    ):
        pass
    message = str(error.value)  # with torch's own words in its middle, which are not the same everywhere
    assert message.startswith("torch: the model failed on input: float32[1, 3] (RuntimeError: ")
    assert message.endswith("cannot be multiplied (1x3 and 4x2)); give the size that it takes with --input")
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == before


def test_a_gpu_needs_other_packages_and_the_reason_says_which() -> None:
    assert unavailable("openvino", "cuda:0") == "openvino does not run on cuda:0; profile on the cpu"
    assert unavailable("onnxruntime", "cuda:0") == (
        "onnxruntime does not run on cuda:0; that is onnxruntime-cuda or onnxruntime-tensorrt"
    )
    if not installed_versions("onnxruntime-gpu"):
        for name in ("onnxruntime-cuda", "onnxruntime-tensorrt"):
            assert unavailable(name, "cuda:0") == (
                "onnxruntime-gpu is not installed; put it in the place of onnxruntime: pip install 'edgestill[ort-gpu]'"
            )


def test_torch_compile_needs_a_compiler_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert unavailable("torch-compile") == "CXX names 'no-such-compiler', which is not there; install one, such as g++"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unavailable("torch-compile") == "no C++ compiler is installed; install one, such as g++"
    monkeypatch.undo()
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert unavailable("torch-compile") == "Python's headers are not installed; install python3-dev"
    assert unavailable("torch-compile", "cuda:0") is None, "there it compiles with triton"


def test_what_cannot_be_compiled_is_one_line(monkeypatch):
    if reason := unavailable("torch-compile"):
        pytest.skip(reason)
    from exporters.run_torch_compile import TorchCompileRunner

    def fails(*arguments, **options):
        raise RuntimeError("no code for this")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fails)
    before = torch.get_num_threads()
    runner = TorchCompileRunner(torch.nn.Flatten(), threads=before + 1, input_shape=(1, 3, 4, 4))
    with (
        pytest.raises(
            ExportError, match=r"^torch-compile: cannot compile the model \(RuntimeError: no code for this\)$"
        ) as error,
        runner,
    ):
        pass
    assert "\n" not in str(error.value) and torch.get_num_threads() == before
