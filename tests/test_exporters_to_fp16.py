import json
import re

import numpy as np
import onnx
import pytest
from exporter_nets import feeds, file
from onnx import TensorProto, helper, numpy_helper

from exporters import open_runner
from exporters.artifact import ExportError, file_sha256, read_metadata
from exporters.half_ranges import largest_sum
from exporters.onnx_file import load_model, save_model
from exporters.parity import compare
from exporters.to_fp16 import convert_fp16


def test_fp16_keeps_fp32_inputs_and_outputs_and_halves_the_weights(tmp_path):
    artifact = convert_fp16(file("fp32"), tmp_path / "half.onnx")
    assert [spec.dtype for spec in (*artifact.inputs, *artifact.outputs)] == ["float32", "float32"]
    assert artifact.precision == "fp16" and "onnx" in artifact.made_by
    floats = [tensor for tensor in onnx.load(str(artifact.path)).graph.initializer if tensor.data_type != 7]
    assert {tensor.data_type for tensor in floats} == {onnx.TensorProto.FLOAT16}
    assert artifact.sha256 == file_sha256(file("fp16"))


def test_fp16_is_close():
    with (
        open_runner("onnxruntime", file("fp32"), threads=1) as single,
        open_runner("onnxruntime", file("fp16"), threads=1) as half,
    ):
        parity = compare(single, half, feeds())
    assert half.precision == "fp16"
    assert parity.sqnr_db > 50 and parity.cosine > 0.9999 and parity.top1_flips == 0


def with_weight(path, value):
    """The fp32 file with one number of the classifier changed."""
    model = load_model(file("fp32"))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, "fc.weight"))
    save_model(model, path)
    return path


def test_a_weight_beyond_fp16_is_named_and_nothing_is_written(tmp_path):
    source = with_weight(tmp_path / "large.onnx", -123456.0)
    with pytest.raises(ExportError) as error:
        convert_fp16(source, tmp_path / "half.onnx")
    assert str(error.value) == (
        f"{source}: 'fc.weight' of node 'node_linear' (Gemm) holds 1.235e+05, beyond fp16's 65504; "
        "keep Gemm in fp32 (keep_fp32) or leave this model in fp32"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["large.onnx"]
    artifact = convert_fp16(source, tmp_path / "half.onnx", keep_fp32=("Gemm",))
    with open_runner("onnxruntime", artifact.path, threads=1) as runner:
        assert np.isfinite(runner(feeds(1)[0])["logits"]).all()


def test_large_weights_that_fit_are_not_clipped(tmp_path):
    artifact = convert_fp16(with_weight(tmp_path / "large.onnx", 49984.0), tmp_path / "half.onnx")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in load_model(artifact.path).graph.initializer}
    assert max(np.abs(array.astype(float)).max() for array in tensors.values() if array.dtype == np.float16) == 49984


@pytest.mark.parametrize("form", ["fp16", "portable"])
def test_a_file_that_is_not_fp32_is_refused(tmp_path, form):
    with pytest.raises(ExportError) as error:
        convert_fp16(file(form), tmp_path / "half.onnx")
    assert str(error.value) == f"{file(form)}: is {'fp16' if form == 'fp16' else 'int8'} already; give the fp32 file"


IMAGES = [np.random.default_rng(seed).normal(size=(2, 3, 8, 8)).astype(np.float32) for seed in range(3)]


def chain(path, **scales):
    """1x1 convolutions in a row, with a Relu after each but the last, whose weights have these scales."""
    rng = np.random.default_rng(2)
    nodes, weights, last = [], {}, "x"
    for name, scale in scales.items():
        weights[f"{name}.weight"] = (scale * rng.normal(size=(3, 3, 1, 1))).astype(np.float32)
        nodes.append(helper.make_node("Conv", [last, f"{name}.weight"], [f"{name}.out"], name=name))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], name=f"{name}.relu"))
        last = f"{name}.relu"
    nodes.pop()
    nodes[-1].output[0] = "y"
    shape = [2, 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


def output_of(path, batch):
    """1x1 convolutions in the very types of the file, sums in fp32: onnxruntime's CPU provider computes whole chains of
    fp16 layers in fp32 and would not show that a value does not fit."""
    model = load_model(path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | {"x": batch}
    for node in model.graph.node:
        given = [values[name] for name in node.input]
        if node.op_type == "Cast":
            made = given[0].astype(helper.tensor_dtype_to_np_dtype(node.attribute[0].i))
        elif node.op_type == "Relu":
            made = np.maximum(given[0], 0)
        else:
            assert node.op_type == "Conv" and given[0].dtype == given[1].dtype
            wide = np.einsum("oi,nihw->nohw", given[1][..., 0, 0].astype(np.float32), given[0].astype(np.float32))
            with np.errstate(all="ignore"):
                made = wide.astype(given[0].dtype)
        values[node.output[0]] = made
    assert values["y"].dtype == np.float32
    return values["y"]


def noise_db(expected, got):
    return 10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum())


def test_layers_whose_activations_overflow_stay_in_fp32_and_the_file_says_which_and_why(tmp_path):
    source = chain(tmp_path / "loud.onnx", first=2.0, up=2.0e4, down=1e-4, last=0.5)
    plain = convert_fp16(source, tmp_path / "plain.onnx").path
    assert not np.isfinite(output_of(plain, IMAGES[0])).all(), "every weight fits fp16, the activations do not"
    said = []
    path = convert_fp16(source, tmp_path / "half.onnx", batches=IMAGES, say=said.append).path
    assert noise_db(output_of(source, IMAGES[0]), output_of(path, IMAGES[0])) > 55
    found = read_metadata(path)
    kept = json.loads(found["fp16_kept"])
    assert list(kept) == ["down", "up", "up.relu"] and found["fp16_samples"] == "6"
    assert re.fullmatch(r"output 'up\.out' reaches \S+, beyond fp16's 65504", kept["up"])
    assert kept["down"].startswith("input 'up.relu' reaches")
    assert said[0] == f"stays in fp32: up (Conv): {kept['up']}" and len(said) == 3
    # Between two layers in fp32 nothing is rounded: in and out of the three, and at the ends of the graph.
    casts = [node for node in load_model(path).graph.node if node.op_type == "Cast"]
    assert len(casts) == 4


def test_layers_that_underflow_stay_in_fp32_even_where_their_weights_lie(tmp_path):
    source = chain(tmp_path / "quiet.onnx", first=0.5, shrink=1e-9, grow=1e9, last=0.5)
    path = convert_fp16(source, tmp_path / "half.onnx", batches=IMAGES).path
    assert noise_db(output_of(source, IMAGES[0]), output_of(path, IMAGES[0])) > 55
    kept = json.loads(read_metadata(path)["fp16_kept"])
    assert list(kept) == ["grow", "shrink", "shrink.relu"]
    assert re.fullmatch(r"weight 'shrink\.weight' stays below \S+, where fp16 leaves -?\d+ dB", kept["shrink"])
    assert kept["shrink.relu"].startswith("input 'shrink.out' stays below")


def test_a_net_that_fits_keeps_nothing_and_its_bytes_do_not_depend_on_how_samples_are_cut(tmp_path):
    path = convert_fp16(file("fp32"), tmp_path / "a.onnx", batches=[feed["input"] for feed in feeds()]).path
    assert "fp16_kept" not in read_metadata(path) and read_metadata(path)["fp16_samples"] == "8"
    operators = [node.op_type for node in load_model(path).graph.node]
    assert operators.count("Cast") == 2
    again = convert_fp16(file("fp32"), tmp_path / "b.onnx", batches=iter([feed["input"] for feed in feeds()])).path
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("operator", "attributes", "values", "result", "largest"),
    [
        ("GlobalAveragePool", {}, np.full((1, 1, 30, 30), 100.0), np.full((1, 1, 1, 1), 100.0), 90000),
        (
            "AveragePool",
            {"kernel_shape": [30, 30]},
            np.full((1, 1, 60, 60), 100.0),
            np.full((1, 1, 2, 2), 100.0),
            90000,
        ),
        ("ReduceSum", {}, np.full((1, 900), 100.0), np.full((1, 1), 90000.0), 90000),
        ("ReduceL2", {}, np.full((1, 4), 200.0), np.full((1, 1), 400.0), 160000),
        ("ReduceSumSquare", {}, np.full((1, 4), 200.0), np.full((1, 1), 160000.0), 160000),
        ("LayerNormalization", {"axis": -1}, np.full((2, 3, 4), 200.0), np.zeros((2, 3, 4)), 160000),
        ("InstanceNormalization", {}, np.full((2, 3, 2, 2), 200.0), np.zeros((2, 3, 2, 2)), 160000),
        ("GroupNormalization", {"num_groups": 2}, np.full((1, 4, 2, 1), 200.0), np.zeros((1, 4, 2, 1)), 160000),
    ],
)
def test_what_adds_up_inside_an_operator(operator, attributes, values, result, largest):
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    assert largest_sum(node, values.astype(np.float32), result.astype(np.float32)) == pytest.approx(largest)


def test_an_average_whose_sum_overflows_stays_in_fp32(tmp_path):
    shape, out = [1, 2, 64, 64], [1, 2, 1, 1]
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["y"], name="mean")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
    )
    path = tmp_path / "mean.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    images = [np.random.default_rng(seed).uniform(15, 17, size=shape).astype(np.float32) for seed in range(2)]
    kept = json.loads(read_metadata(convert_fp16(path, tmp_path / "h.onnx", batches=images).path)["fp16_kept"])
    assert re.fullmatch(r"sums up to 6\.5\d+e\+04, beyond fp16's 65504", kept["mean"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no calibration samples; give some from the training split"),
        ([np.zeros((2, 3, 8, 8), np.float32)], "all 2 calibration samples are the same"),
        ([IMAGES[0] * np.inf], "calibration batch 1: holds NaN or infinity"),
    ],
)
def test_samples_that_say_nothing_are_refused(tmp_path, images, message):
    source = chain(tmp_path / "c.onnx", a=1.0, b=1.0)
    with np.errstate(invalid="ignore"), pytest.raises(ExportError, match=message):
        convert_fp16(source, tmp_path / "h.onnx", batches=images)
    assert not (tmp_path / "h.onnx").exists()


def test_an_inner_graph_stays_in_fp32_and_reads_what_it_read(tmp_path):
    inner = [
        helper.make_graph(
            [helper.make_node(operator, ["a"], [f"{operator}.out"], name=operator)],
            operator,
            [],
            [helper.make_tensor_value_info(f"{operator}.out", TensorProto.FLOAT, [1, 4])],
        )
        for operator in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("Add", ["x", "one"], ["a"], name="add"),
        helper.make_node("ReduceSum", ["x"], ["sum"], name="sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], name="greater"),
        helper.make_node("If", ["positive"], ["b"], name="if", then_branch=inner[0], else_branch=inner[1]),
        helper.make_node("Mul", ["b", "a"], ["y"], name="mul"),
        helper.make_node("Identity", ["sum"], ["total"], name="identity"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, []),
        ],
        [numpy_helper.from_array(np.float32(value), name) for name, value in (("one", 1), ("zero", 0))],
    )
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    half = convert_fp16(path, tmp_path / "half.onnx").path
    with open_runner("onnxruntime", path, threads=1) as a, open_runner("onnxruntime", half, threads=1) as b:
        for values in ([1, 2, 3, 4], [-4, -3, 2, 1]):
            feed = {"x": np.array([values], np.float32)}
            for name, expected in a(feed).items():
                np.testing.assert_allclose(b(feed)[name], expected, rtol=2e-3)
