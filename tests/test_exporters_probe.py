import json
import subprocess
import sys

import onnx
import pytest
from cli_runner import cli
from exporter_nets import INPUT_SHAPE, file
from onnx import TensorProto, helper

from exporters.artifact import ExportError
from exporters.probe import cold_start


@pytest.mark.parametrize(
    "request_",
    [
        {"runtime": "onnxruntime", "path": "fp32"},
        {"runtime": "openvino", "path": "portable"},
        {"runtime": "onnxruntime", "path": "dynamic", "shape": list(INPUT_SHAPE)},
        {"runtime": "torch", "builder": "exporter_nets:build", "args": {"seed": 0}, "shape": list(INPUT_SHAPE)},
    ],
    ids=lambda request: f"{request['runtime']}-{request.get('path', 'module')}",
)
def test_every_runtime_answers_in_json(request_):
    request = {**request_, "threads": 1}
    if "path" in request:
        request["path"] = str(file(request["path"]))
    answer = cold_start(json.loads(json.dumps(request)))
    assert set(json.loads(json.dumps(answer))) == {"load_ms", "first_ms", "next_ms", "device_memory"}
    assert answer.pop("device_memory") is None  # on a CPU, resident memory says it
    assert all(value > 0 for value in answer.values())


def test_open_sizes_are_an_error():
    with pytest.raises(ExportError, match="has open sizes; give --input"):
        cold_start({"runtime": "onnxruntime", "path": str(file("dynamic")), "threads": 1})


def test_open_sizes_of_several_inputs_are_filled_by_name(tmp_path):
    pytest.importorskip("onnxruntime")
    add = helper.make_node("Add", ["a", "b"], ["y"])
    kinds = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "aby"}
    graph = helper.make_graph([add], "g", [kinds["a"], kinds["b"]], [kinds["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "two.onnx"
    onnx.save(model, path)
    request = {"runtime": "onnxruntime", "path": str(path), "threads": 1}
    assert cold_start(request | {"shape": {"a": [2, 3], "b": [2, 3]}})["first_ms"] > 0
    with pytest.raises(ExportError, match="has open sizes"):
        cold_start(request)
    words = ("--input", "a=2,3", "--input", "b=2,3", "--runtime", "onnxruntime", "--seconds", "0.05", "--blocks", "2")
    (row,) = cli("profile", path, *words, "--no-energy", "--json").json["subjects"]
    assert row["peak_memory_bytes"] > 0 and row["first_ms"] > 0 and row["missing"] == {}


def test_a_fresh_process_holds_the_runtime_and_little_else():
    """Peak memory is measured there, so nothing may be imported that the runtime does not need."""
    request = {"runtime": "onnxruntime", "path": str(file("fp32")), "threads": 1}
    code = f"import sys\nfrom exporters.probe import cold_start\ncold_start({request!r})\n"
    code += "print([name for name in ('torch', 'onnx', 'openvino', 'scipy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
