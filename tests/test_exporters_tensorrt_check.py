"""What each edition accepts, asked of the graph alone: opsets, operators, and how Q/DQ must be written."""

import numpy as np
import onnx
import pytest
from exporter_nets import file
from onnx import TensorProto, helper, numpy_helper

from exporters.artifact import ExportError
from exporters.onnx_file import load_model
from exporters.tensorrt_check import check_file, check_graph, faults, rules_of

MODERN = rules_of("tensorrt", "10.3.0")
ZERO = np.int8(0)
NEWEST = rules_of("tensorrt-rtx", "1.7.1")
OLD = rules_of("tensorrt", "8.6.2")


def quantized(
    *,
    opset=18,
    zero=ZERO,
    scale=0.1,
    scale_type=np.float32,
    weight_scales=(0.1,) * 4,
    weight_axis=0,
    weight_type=np.int8,
    axis=1,
    output_dtype=None,
    op="Conv",
    weight_shape=(4, 3, 3, 3),
):
    """Q/DQ on the input and DQ on the weight of one weighted operator."""
    constants = {
        "scale": np.asarray(scale, scale_type),
        "weight": np.ones(weight_shape, weight_type),
        "weight_scale": np.asarray(weight_scales, scale_type),
    }
    names = ["scale"]
    if zero is not None:
        constants["zero"] = np.broadcast_to(zero, np.shape(scale))
        names.append("zero")
    typed = {} if output_dtype is None else {"output_dtype": output_dtype}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *names], ["q"], name="quantize", axis=axis, **typed),
        helper.make_node("DequantizeLinear", ["q", *names], ["d"], name="dequantize", axis=axis),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale"], ["w"], name="weights", axis=weight_axis),
        helper.make_node(op, ["d", "w"], ["y"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(
    ("name", "version", "opsets"),
    [
        ("tensorrt", "8.6.2", (7, 17)),
        ("tensorrt", "10.3.0.26", (9, 20)),
        ("tensorrt", "10.16.2", (9, 24)),
        ("tensorrt", "11.4.1", (9, 24)),
        ("tensorrt-rtx", "1.7.1.116", (9, 24)),
    ],
)
def test_operator_sets_of_the_editions(name, version, opsets):
    rules = rules_of(name, version)
    assert rules.opsets == opsets
    assert list(faults(quantized(opset=opsets[1]), rules)) == ([] if version[0] != "8" else [NO_ZERO_POINT])
    for opset in (opsets[0] - 1, opsets[1] + 1):
        with pytest.raises(ExportError) as error:
            check_graph(quantized(opset=opset), rules, where="m.onnx")
        assert str(error.value) == (
            f"m.onnx: has opset {opset}; {name} {version} takes {opsets[0]} to {opsets[1]}; "
            f"give it in opset {opsets[1]}"
        )


NO_ZERO_POINT = "node 'weights' (DequantizeLinear) has no zero point; tensorrt 8.6.2 wants a constant 0"
UNSIGNED = "is unsigned; TensorRT takes signed int8: quantize in the portable form"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"scale_type": np.float16, "opset": 19}, None),
        ({"zero": np.int8(3)}, "node 'quantize' (QuantizeLinear) has zero point 3; only 0 (symmetric) is taken"),
        ({"zero": np.uint8(0)}, f"node 'quantize' (QuantizeLinear) {UNSIGNED}"),
        # The parser reads this as signed and says nothing; ONNX means unsigned.
        ({"zero": None}, f"node 'quantize' (QuantizeLinear) {UNSIGNED}"),
        ({"zero": None, "opset": 21, "output_dtype": TensorProto.INT8}, None),
        ({"weight_type": np.uint8}, f"node 'weights' (DequantizeLinear) {UNSIGNED}"),
        (
            {"weight_type": np.int32},
            "node 'weights' (DequantizeLinear) dequantizes an int32 bias; leave biases in float (QuantizeBias=False)",
        ),
        ({"scale": -0.5}, "node 'quantize' (QuantizeLinear) has scale -0.5; scales must be positive"),
        ({"scale": 0.0}, "node 'quantize' (QuantizeLinear) has scale 0; scales must be positive"),
        ({"scale": np.nan}, "node 'quantize' (QuantizeLinear) has scale nan; scales must be positive"),
        (
            {"weight_scales": (0.1, np.inf, 0.1, 0.1)},
            "node 'weights' (DequantizeLinear) has scale inf; scales must be positive",
        ),
        (
            {"scale": (0.1, 0.1, 0.1)},
            "node 'quantize' (QuantizeLinear) has 3 scales for an activation; give it one (per tensor)",
        ),
        # NVIDIA's parser and builder take this one without a word.
        (
            {"weight_scales": (0.1, 0.1, 0.1), "weight_axis": 1},
            (
                "node 'weights' (DequantizeLinear) has its scales on axis 1; those of the weights of 'product' (Conv) "
                "lie on axis 0"
            ),
        ),
        ({"weight_axis": -4}, None),
        (
            {"op": "ConvTranspose", "weight_scales": (0.1,) * 4},
            (
                "node 'weights' (DequantizeLinear) has its scales on axis 0; those of the weights of 'product' "
                "(ConvTranspose) lie on axis 1"
            ),
        ),
        ({"op": "MatMul", "weight_shape": (8, 4), "weight_axis": 1}, None),
        ({"op": "Gemm", "weight_shape": (8, 4), "weight_axis": -1}, None),
        (
            {"op": "Gemm", "weight_shape": (4, 8), "weight_axis": 0},
            (
                "node 'weights' (DequantizeLinear) has its scales on axis 0; those of the weights of 'product' (Gemm) "
                "lie on axis 1"
            ),
        ),
    ],
)
def test_how_q_and_dq_must_be_written(changes, fault):
    assert list(faults(quantized(**changes), NEWEST))[:1] == ([] if fault is None else [fault])


def test_edition_8_wants_zero_points_and_fp32_scales():
    assert list(faults(quantized(opset=17), OLD)) == [NO_ZERO_POINT]
    half = "has an fp16 scale; tensorrt 8.6.2 takes fp32 scales: make its file from the fp32 one"
    assert f"node 'quantize' (QuantizeLinear) {half}" in list(faults(quantized(opset=17, scale_type=np.float16), OLD))


def test_computed_scales_and_zero_points_are_refused():
    model = quantized()
    model.graph.node.insert(0, helper.make_node("Identity", ["scale"], ["made"], name="maker"))
    model.graph.node[1].input[1] = "made"
    assert list(faults(model, MODERN)) == [("node 'quantize' (QuantizeLinear) has a scale that is computed; "
                                          "it must be a constant")]  # fmt: skip
    model = quantized()
    model.graph.node.insert(0, helper.make_node("Identity", ["zero"], ["made"], name="maker"))
    model.graph.node[1].input[2] = "made"
    assert list(faults(model, MODERN)) == [("node 'quantize' (QuantizeLinear) has a zero point that is computed; "
                                          "it must be a constant 0")]  # fmt: skip


def test_operators_that_no_edition_has_and_those_that_the_parser_denies():
    graph = helper.make_graph([helper.make_node("ConvInteger", ["x", "w"], ["y"])], "g", [], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    assert list(faults(model, MODERN)) == [
        "node 'y' (ConvInteger) is no operator of tensorrt 10.3.0; quantize with Q/DQ nodes (the portable form)"
    ]
    graph.node[0].op_type = "Unique"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    assert list(faults(model, MODERN)) == []
    assert list(faults(model, MODERN, supports=lambda name: name != "Unique")) == [
        "node 'y' (Unique) is no operator of tensorrt 10.3.0; export the model without it"
    ]


@pytest.mark.parametrize("form", ["fp32", "fp16", "portable", "dynamic"])
@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_what_we_ship_passes(form, version):
    check_file(file(form), "tensorrt", version)


def test_the_unsigned_form_is_refused_with_its_node():
    with pytest.raises(ExportError) as error:
        check_file(file("cpu"), "tensorrt-rtx", "1.7.1")
    assert str(error.value) == f"{file('cpu')}: node 'input_QuantizeLinear' (QuantizeLinear) {UNSIGNED}"


def test_what_is_exported_for_newer_editions_is_refused_for_the_oldest():
    with pytest.raises(ExportError) as error:
        check_file(file("fp32"), "tensorrt", "8.6.2")
    assert str(error.value) == (f"{file('fp32')}: has opset 20; tensorrt 8.6.2 takes 7 to 17; give it in opset 17")


def test_weights_quantized_in_the_graph_itself_may_have_channels():
    model = load_model(file("portable"))
    weights = next(node for node in model.graph.node if node.name == "conv.weight_DequantizeLinear")
    stored = next(t for t in model.graph.initializer if t.name == weights.input[0])
    values = numpy_helper.to_array(stored).astype(np.float32)
    stored.CopyFrom(numpy_helper.from_array(values, stored.name))
    before = helper.make_node("QuantizeLinear", list(weights.input), ["late"], name="late", axis=0)
    weights.input[0] = "late"
    model.graph.node.insert(0, before)
    onnx.checker.check_model(model)
    assert list(faults(model, MODERN)) == []
