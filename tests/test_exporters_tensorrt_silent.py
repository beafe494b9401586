"""What TensorRT-RTX itself would build silently, or with a warning alone, though it is not what was asked for."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from exporter_nets import file
from onnx import TensorProto, helper, numpy_helper

from exporters.artifact import ExportError
from exporters.onnx_file import load_model, save_model
from exporters.tensorrt_api import edition_of
from exporters.tensorrt_engine import read_sidecar
from exporters.tensorrt_options import BuildOptions
from exporters.to_tensorrt import build_engine

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; pip install 'edgestill[test]'")
ADA = BuildOptions(compute_capabilities=("SM89",))


def edition():
    return edition_of("tensorrt-rtx")


def silent_fp32(path):
    """Weights stored in half and computed with in float: an "fp16" file that no engine computes in fp16."""
    model = load_model(file("fp16"))
    for node in list(model.graph.node):
        if node.op_type not in ("Conv", "Gemm"):
            continue
        for place, name in enumerate(node.input):
            cast = helper.make_node("Cast", [name], [f"{node.name}_{place}"], to=TensorProto.FLOAT)
            node.input[place] = cast.output[0]
            model.graph.node.insert(list(model.graph.node).index(node), cast)
        back = helper.make_node("Cast", [f"{node.name}_out"], [node.output[0]], to=TensorProto.FLOAT16)
        node.output[0] = back.input[0]
        model.graph.node.insert(list(model.graph.node).index(node) + 1, back)
    del model.graph.value_info[:]
    save_model(model, path)
    return path


def test_a_silent_fp32_engine_is_an_error(tmp_path):
    path = silent_fp32(tmp_path / "half.onnx")
    with pytest.raises(ExportError) as error:
        build_engine(path, tmp_path / "half.engine", edition=edition(), options=ADA)
    assert str(error.value) == (
        f"{path}: asked for fp16, got 0 of 7 layers in it (fp32 7); the first that is not is 'node_Conv_82': "
        f"give {edition()} a graph in fp16"
    )
    assert not (tmp_path / "half.engine").exists()


def test_a_warning_is_a_failure(tmp_path, monkeypatch):
    # The parser reads UINT8 with zero point 0 as INT8, which changes the ranges, and only warns.
    monkeypatch.setattr("exporters.to_tensorrt.check_graph", lambda *a, **k: None)
    model = load_model(file("portable"))
    for tensor in model.graph.initializer:
        if tensor.name == "input_zero_point":
            tensor.CopyFrom(numpy_helper.from_array(np.uint8(0), tensor.name))
    del model.graph.value_info[:]
    path = tmp_path / "unsigned.onnx"
    onnx.save(model, str(path))
    with pytest.raises(ExportError, match=r"warned while reading the graph: .*UINT8 zero_point") as error:
        build_engine(path, tmp_path / "u.engine", edition=edition(), options=ADA)
    assert str(error.value).startswith(f"{path}: {edition()} warned")


def test_fp16_scales_are_the_one_note_that_may_be(tmp_path):
    model = load_model(file("portable"))
    path = tmp_path / "leftovers.onnx"
    onnx.save(halved(model), str(path))
    # TensorRT-RTX says it once a process, so this is one that has built nothing before.
    code = (
        "import sys\nfrom test_exporters_tensorrt_silent import ADA, build_engine, edition\n"
        "build_engine(sys.argv[1], sys.argv[2], edition=edition(), options=ADA)"
    )
    search = os.pathsep.join(str(Path(__file__).parents[up]) for up in (0, 1))
    environment = {**os.environ, "PYTHONPATH": search}
    subprocess.run([sys.executable, "-c", code, path, tmp_path / "l.engine"], check=True, env=environment)
    facts = read_sidecar(tmp_path / "l.engine").facts
    assert facts["precision"]["obtained"]["layers"] == {"int8": 7}
    assert facts["notes"] and all("scales to fp32" in note for note in facts["notes"])


def halved(model):
    """The float tensors of a Q/DQ graph in half, scales included, as GPU targets get them (opset 19 and later)."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    return model
