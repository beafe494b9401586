import json
import subprocess
import sys

import pytest
from exporter_nets import INPUT_SHAPE, file

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


def test_a_fresh_process_holds_the_runtime_and_little_else():
    """Peak memory is measured there, so nothing may be imported that the runtime does not need."""
    request = {"runtime": "onnxruntime", "path": str(file("fp32")), "threads": 1}
    code = f"import sys\nfrom exporters.probe import cold_start\ncold_start({request!r})\n"
    code += "print([name for name in ('torch', 'onnx', 'openvino', 'scipy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
