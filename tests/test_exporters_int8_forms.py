"""int8 for NVIDIA's runtimes: fp16 leftovers with fp16 scales, and TensorRT 8.6's own file in opset 17."""

import json

import numpy as np
import onnx
import pytest
from exporter_nets import INPUT_SHAPE, batches, feeds, file
from onnx import TensorProto, helper, numpy_helper

from exporters import open_runner
from exporters.artifact import ExportError, file_sha256, read_metadata
from exporters.int8_forms import _round_scales, _up
from exporters.onnx_file import load_model, save_model
from exporters.opset import check_same, opset_of, to_opset
from exporters.parity import compare
from exporters.quantize_onnx import quantize_int8
from exporters.tensorrt_check import check_file

WEIGHTED = ("Conv", "Gemm")


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    return {
        form: quantize_int8(file("fp32"), folder / f"{form}.onnx", form=form, batches=batches()).path
        for form in ("gpu", "trt86")
    }


def tensors_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_the_gpu_form_is_half_wherever_it_is_not_int8(forms):
    model = load_model(forms["gpu"])
    tensors = tensors_of(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    assert opset_of(model) >= 19
    assert {str(array.dtype) for array in tensors.values()} == {"float16", "int8", "int64"}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert tensors[node.input[1]].dtype == np.float16 and (tensors[node.input[1]] > 0).all()
            assert tensors[node.input[2]].dtype == np.int8 and not tensors[node.input[2]].any()
        if node.op_type in (*WEIGHTED, "Add"):
            assert all(makers[name].op_type == "DequantizeLinear" for name in node.input[:2]), node.name
        if node.op_type == "Conv":
            assert tensors[makers[node.input[1]].input[1]].size > 1, "a scale for each output channel"
    assert [node.op_type for node in model.graph.node].count("Cast") == 2, "at the fp32 input and output, and no more"
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}


def test_the_file_of_8_6_has_its_opset_and_fp32_scales(forms):
    model = load_model(forms["trt86"])
    kinds = {str(array.dtype) for name, array in tensors_of(model).items() if name.endswith("_scale")}
    assert (opset_of(model), model.ir_version, kinds) == (17, 8, {"float32"})
    check_file(forms["trt86"], "tensorrt", "8.6.2")
    for form, fault in (("gpu", "has opset 20; tensorrt 8.6.2 takes 7 to 17; give it in opset 17"),):
        with pytest.raises(ExportError) as error:
            check_file(forms[form], "tensorrt", "8.6.2")
        assert str(error.value) == f"{forms[form]}: {fault}"
    check_file(forms["gpu"], "tensorrt", "10.3.0")
    check_file(forms["trt86"], "tensorrt", "10.3.0")


@pytest.mark.parametrize("form", ["gpu", "trt86"])
def test_both_give_what_the_portable_form_gives(forms, form):
    with (
        open_runner("onnxruntime", file("fp32"), threads=1) as single,
        open_runner("onnxruntime", file("portable"), threads=1) as portable,
        open_runner("onnxruntime", forms[form], threads=1) as candidate,
    ):
        alike = compare(portable, candidate, feeds())
        parity = compare(single, candidate, feeds())
    assert candidate.precision == "int8" and parity.sqnr_db > 20
    # Equal integers but where rounding to half, or a scale rounded up, moved a value over an edge.
    assert alike.sqnr_db > (25 if form == "gpu" else 60)
    assert read_metadata(forms[form])["form"] == form
    assert read_metadata(forms[form])["class_names"] == read_metadata(file("fp32"))["class_names"]


@pytest.mark.parametrize("form", ["gpu", "trt86"])
def test_the_same_samples_give_the_same_bytes(forms, form, tmp_path):
    again = quantize_int8(file("fp32"), tmp_path / "again.onnx", form=form, batches=batches())
    assert again.sha256 == file_sha256(forms[form])


def test_the_gpu_form_wants_its_samples_twice(tmp_path):
    with pytest.raises(ExportError, match="the gpu form reads the calibration samples twice and got none the second"):
        quantize_int8(file("fp32"), tmp_path / "g.onnx", form="gpu", batches=iter(batches()))
    once = quantize_int8(file("fp32"), tmp_path / "t.onnx", form="trt86", batches=iter(batches()))
    assert read_metadata(once.path)["calibration_samples"] == "8", "the batch that checked the conversion counts too"


@pytest.mark.parametrize("value", [1e-9, 6e-8, 1e-6, 3.1e-5, 0.1, 1 / 3, 100.1, 65504.0])
def test_scales_are_rounded_up_and_stay_positive(value):
    rounded = _up(np.float32(value))
    assert rounded >= np.float32(value) and rounded > 0 and rounded == np.float16(rounded)
    assert rounded <= max(np.float32(value) * (1 + 2**-10), np.float32(value) + 2.0**-24)


def test_weights_are_fitted_to_their_rounded_scale():
    """A channel whose weights are so small that its scale is among fp16's coarse numbers."""
    scales = np.array([0.01, 1.3e-7], np.float32)
    integers = np.array([[100, -127], [100, -127]], np.int8)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], axis=0)],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
        [numpy_helper.from_array(a, n) for n, a in (("w", integers), ("s", scales), ("z", np.zeros(2, np.int8)))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    _round_scales(model, set())
    tensors = tensors_of(model)
    wanted = integers * scales[:, None].astype(np.float64)
    np.testing.assert_allclose(tensors["w"] * tensors["s"][:, None].astype(np.float64), wanted, rtol=6e-3)
    assert (tensors["s"] == tensors["s"].astype(np.float16)).all()


def test_a_layer_that_fp16_cannot_hold_stays_in_fp32_with_its_scales(tmp_path):
    model = load_model(file("fp32"))
    for tensor in model.graph.initializer:
        if tensor.name == "blocks.0.conv2.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 3e5, tensor.name))
        if tensor.name == "fc.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1e-3, tensor.name))
    save_model(model, tmp_path / "loud.onnx")
    path = quantize_int8(tmp_path / "loud.onnx", tmp_path / "g.onnx", form="gpu", batches=batches()).path
    kept = json.loads(read_metadata(path)["fp16_kept"])
    quantized = load_model(path)
    tensors, makers = tensors_of(quantized), {name: node for node in quantized.graph.node for name in node.output}
    wide = [node for node in quantized.graph.node if node.op_type == "Conv" and node.name in kept]
    assert wide and all(tensors[makers[node.input[1]].input[1]].dtype == np.float32 for node in wide)
    with (
        open_runner("onnxruntime", tmp_path / "loud.onnx", threads=1) as single,
        open_runner("onnxruntime", path, threads=1) as candidate,
    ):
        assert compare(single, candidate, feeds()).sqnr_db > 20


def plain(operator, opset, shape=(1, 3, 8, 8), **attributes):
    weights = [numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node(operator, ["c"], ["y"], name="odd/one:0", **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 8, 8))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_what_has_no_form_in_an_older_opset_is_refused_with_its_node():
    with pytest.raises(ExportError) as error:
        to_opset(plain("Gelu", 20), 17, where="m.onnx")
    assert str(error.value).startswith("m.onnx: node 'odd/one:0' (Gelu): opset 20 cannot be converted to 17 (")
    assert str(error.value).endswith("; give a file in opset 17, or a model without such a node")
    assert "\n" not in str(error.value)


def test_a_conversion_that_computes_something_else_is_refused():
    a, b = plain("Relu", 18), plain("Sigmoid", 17)
    feed = {"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    check_same(a, to_opset(a, 17, where="m.onnx"), feed, where="m.onnx")
    with pytest.raises(ExportError, match=r"m\.onnx: opset 17 does not compute what opset 18 does: 'y' has \S+ dB"):
        check_same(a, b, feed, where="m.onnx")


def test_onnx_itself_finds_both_forms_valid(forms):
    for path in forms.values():
        onnx.checker.check_model(str(path), full_check=True)
    dims = load_model(forms["gpu"]).graph.input[0].type.tensor_type.shape.dim
    assert tuple(dim.dim_value for dim in dims) == INPUT_SHAPE
