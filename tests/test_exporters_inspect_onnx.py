import json

import onnx
import pytest
from exporter_nets import file, net
from onnx import TensorProto, helper

from exporters.artifact import ExportError
from exporters.inspect_onnx import describe


def test_a_description_of_fp32():
    found = describe(file("fp32"))
    assert json.loads(json.dumps(found)) == found
    assert found["opset"] == {"ai.onnx": 20} and found["precision"] == "fp32" and found["quantized_share"] == 0.0
    assert found["inputs"] == [{"name": "input", "dtype": "float32", "shape": [2, 3, 16, 16]}]
    assert found["operators"] == {"Add": 2, "Conv": 6, "Gemm": 1, "ReduceMean": 1, "Relu": 5}
    assert found["metadata"]["class_names"][-1] == "élan"
    # BatchNorm is folded: two numbers a channel become the bias that the convolution lacked.
    weights = sum(p.numel() for name, p in net().named_parameters() if p.ndim > 1)
    biases = sum(channels for channels in (8, 8, 8, 16, 16, 16, 5))
    assert found["params"] == weights + biases


@pytest.mark.parametrize(
    ("form", "precision", "main", "share"),
    [("fp16", "fp16", "float16", 0), ("portable", "int8", "int8", 1), ("cpu", "int8", "int8", 1)],
)
def test_a_description_of_the_other_forms(form, precision, main, share):
    found = describe(file(form))
    assert found["precision"] == precision and found["quantized_share"] == share
    assert found["precision_share"][main] > 0.75
    assert sum(found["precision_share"].values()) == pytest.approx(1)
    assert found["params"] == describe(file("fp32"))["params"]


def test_open_sizes_need_shapes():
    with pytest.raises(ExportError) as error:
        describe(file("dynamic"))
    assert str(error.value) == (
        f"{file('dynamic')}: input input: float32[batch, 3, 16, 16] has open sizes; give --input 1,3,224,224"
    )
    assert describe(file("dynamic"), (7, 3, 16, 16))["inputs"][0]["shape"] == [7, 3, 16, 16]


def save(path, nodes, *, domains=(("", 18),), elem_type=TensorProto.FLOAT, initializers=()):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", elem_type, [1, 4])], [value("y", elem_type, [1, 4])], list(initializers)
    )
    opsets = [helper.make_opsetid(*domain) for domain in domains]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def test_an_operator_of_nobody_is_named_with_its_node(tmp_path):
    custom = helper.make_node("Swizzle", ["x"], ["y"], name="head/swizzle", domain="acme")
    path = save(tmp_path / "c.onnx", [custom], domains=(("", 18), ("acme", 1)))
    with pytest.raises(ExportError) as error:
        describe(path)
    assert str(error.value) == (
        f"{path}: node 'head/swizzle' has the unsupported operator acme::Swizzle (opset 1); "
        "export the model with standard ONNX operators"
    )
    path = save(tmp_path / "d.onnx", [helper.make_node("Gelu", ["x"], ["y"], name="act")])
    with pytest.raises(ExportError, match="node 'act' has the unsupported operator Gelu \\(opset 18\\)"):
        describe(path)


@pytest.mark.parametrize(("imported", "said"), [("", "ai.onnx"), ("ai.onnx", "")])
def test_the_standard_domain_has_two_names(tmp_path, imported, said):
    """Gelu came with opset 20: where the version was looked up by the other name, it was refused."""
    node = helper.make_node("Gelu", ["x"], ["y"], "bend", domain=said)
    found = describe(save(tmp_path / "m.onnx", [node], domains=((imported, 20),)))
    assert found["operators"] == {"Gelu": 1} and found["opset"] == {"ai.onnx": 20}
    with pytest.raises(ExportError, match=r"node 'bend' has the unsupported operator Gelu \(opset 19\); "):
        describe(save(tmp_path / "m.onnx", [node], domains=((imported, 19),)))


def test_a_foreign_file_without_weights(tmp_path):
    found = describe(save(tmp_path / "r.onnx", [helper.make_node("Relu", ["x"], ["y"])]))
    assert (found["params"], found["precision_share"], found["quantized_share"]) == (0, {}, None)
    assert found["metadata"] == {} and found["producer"] is None


def test_text_that_is_none_is_shown(tmp_path):
    path = save(tmp_path / "r.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    path.write_bytes(path.read_bytes().replace(b"Relu", b"Re\xecu"))
    with pytest.raises(ExportError) as error:
        describe(path)
    assert str(error.value) == f"{path}: damaged; the text b'Re\\xecu' in it is not UTF-8"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an ONNX file; it holds no graph"),
        (b"\xff\xd8\xff\xe0 a picture", "not an ONNX file; it cannot be parsed"),
        (None, "no such file"),
    ],
)
def test_what_is_no_onnx_file(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError) as error:
        describe(path)
    assert str(error.value) == f"{path}: {message}"
    with pytest.raises(ExportError) as error:
        describe(tmp_path)
    assert str(error.value) == f"{tmp_path}: is a folder, not an ONNX file"
