"""Engines built on a device: when one is used again, what a build may take, and what is said when the GPU cannot."""

import sys

import numpy as np
import onnx
import pytest
from exporter_nets import feeds, file
from onnx import TensorProto, helper, numpy_helper
from tensorrt_fakes import engine, install

from exporters.artifact import ExportError, file_sha256
from exporters.run_tensorrt import TensorRtRunner
from exporters.tensorrt_cache import cache_folder, file_key


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A driver and a TensorRT that are not there; the driver is returned."""
    return install("10.3.0", monkeypatch, tmp_path)


def external(folder, value):
    """A product with weights of `value` beside the file, whose own bytes are the same for every value."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in ("x", "y")]
    weights = numpy_helper.from_array(np.full((64, 64), value, np.float32), "w")
    product = helper.make_node("Gemm", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([product], "g", ends[:1], ends[1:], [weights])
    path = folder / "external.onnx"
    (folder / "external.bin").unlink(missing_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, str(path), save_as_external_data=True, location="external.bin", size_threshold=0)
    return path


def test_whatever_an_engine_hangs_on_has_it_built_again(monkeypatch, tmp_path):
    def builds(version="10.3.0", shapes=(2, 3, 16, 16), **driver):
        install(version, monkeypatch, tmp_path, **driver)
        with TensorRtRunner(file("dynamic"), threads=1, shapes=shapes):
            return len(sys.modules["tensorrt"].built)

    assert builds() == 1
    assert builds() == 0, "the same again"
    assert builds(shapes=(4, 3, 16, 16)) == 1, "other options"
    assert builds(version="10.7.0") == 1, "another TensorRT"
    assert builds(name="Other GPU") == 1, "another GPU"
    assert builds(newest=12080) == 1, "another driver"
    monkeypatch.setattr("exporters.tensorrt_cache.WORKSPACE_SHARE", 2)
    assert builds() == 1, "another workspace"
    monkeypatch.setattr("exporters.tensorrt_cache.code_version", lambda: "of tomorrow")
    assert builds() == 1, "other code of ours"
    assert builds() == 0


def test_weights_beside_the_file_are_part_of_it(machine, tmp_path):
    found = []
    for value in (1, 2):
        path = external(tmp_path, value)
        with TensorRtRunner(path, threads=1) as runner:
            found.append((file_sha256(path), float(runner({"x": np.ones((1, 64), np.float32)})["y"][0, 0])))
    assert found == [(found[0][0], 64.0), (found[0][0], 128.0)]
    assert set(file_key(path)) == {"", "external.bin"}
    (tmp_path / "external.bin").unlink()
    with pytest.raises(ExportError) as error, TensorRtRunner(path, threads=1):
        pass
    assert str(error.value) == (
        f"{path}: its weights lie in external.bin, which is not there; keep both files together"
    )


def test_a_build_here_has_a_limit_and_the_timings_of_earlier_ones(machine, tmp_path):
    for shapes in ((1, 3, 16, 16), (2, 3, 16, 16)):
        with TensorRtRunner(file("dynamic"), threads=1, shapes=shapes):
            pass
    (timings,) = cache_folder().glob("timings-*.cache")
    assert timings.read_bytes() == b"timings ..", "of two builds"
    assert [config.pools for _, config in sys.modules["tensorrt"].built] == [{"WORKSPACE": 2 << 30}] * 2
    timings.write_bytes(b"damaged")
    with TensorRtRunner(file("dynamic"), threads=1, shapes=(3, 3, 16, 16)):
        assert timings.read_bytes().startswith(b"timings"), "begun anew"


@pytest.mark.parametrize("method", ["__enter__", "prepare", "profile_layers"])
def test_a_full_gpu_is_one_line_that_says_what_to_lower(machine, tmp_path, method):
    path = engine(tmp_path)
    runner = TensorRtRunner(path, threads=1)
    told = (
        f"{path}: tensorrt on cuda:0: cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY; the GPU's memory is full: lower the "
        "batch (--input, profile.batch), or end what else runs on it"
    )
    if method == "__enter__":
        machine.memory = 1000
        with pytest.raises(ExportError) as error, runner:
            pass
    else:
        with runner:
            machine.memory = sum(map(len, machine.blocks.values()))
            with pytest.raises(ExportError) as error:
                getattr(runner, method)(feeds(1)[0], *([3] if method == "profile_layers" else []))
    assert str(error.value) == told
    assert machine.blocks == {}


@pytest.mark.parametrize("call", ["cuMemcpyHtoDAsync_v2", "cuGraphLaunch", "cuStreamSynchronize"])
def test_a_fault_while_it_runs_is_one_line(machine, monkeypatch, tmp_path, call):
    path, batch = engine(tmp_path), feeds(1)[0]
    with TensorRtRunner(path, threads=1) as runner:
        infer = runner.prepare(batch)
        monkeypatch.setattr(machine, call, lambda *arguments: 719, raising=False)
        work = {"cuGraphLaunch": infer, "cuStreamSynchronize": runner.synchronize}.get(call, lambda: runner(batch))
        with pytest.raises(ExportError) as error:
            work()
        monkeypatch.undo()
    assert str(error.value) == f"{path}: tensorrt on cuda:0: {call}: CUDA_ERROR_LAUNCH_FAILED; look at nvidia-smi"
