"""Equalization leaves the function as it is, for any chain; and evens out what it should."""

import numpy as np
import pytest
from exporter_nets import batches, feeds, file
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_tensor_value_info

from exporters import open_runner
from exporters.artifact import ExportError, read_metadata
from exporters.calibrate import open_session
from exporters.equalize import equalize, pairs, relaxed
from exporters.onnx_file import load_model, save_model
from exporters.parity import compare
from exporters.quantize_onnx import quantize_int8


def chain(layers, between, *, seed=0, spread=3.0, outputs=()):
    """Convolutions (channels, groups) with an activation or "" after each; weights that vary wildly by channel."""
    rng = np.random.default_rng(seed)
    nodes, weights, tensor, width = [], [], "x", 4
    for place, ((wanted, grouping), activation) in enumerate(zip(layers, between, strict=True)):
        groups = width if grouping == "depthwise" else grouping
        channels = width if groups == width else wanted
        loud = np.exp(rng.normal(scale=spread, size=(channels, 1, 1, 1)))
        weight = (rng.normal(size=(channels, width // groups, 3, 3)) * loud).astype(np.float32)
        names = [f"w{place}", f"b{place}"]
        weights += [
            numpy_helper.from_array(weight, names[0]),
            numpy_helper.from_array(rng.normal(size=channels).astype(np.float32), names[1]),
        ]
        nodes.append(
            helper.make_node("Conv", [tensor, *names], [f"c{place}"], f"conv{place}", group=groups, pads=[1] * 4)
        )
        tensor, width = f"c{place}", channels
        if activation:
            limits = ["low", "high"] if activation == "Clip" else []
            nodes.append(helper.make_node(activation, [tensor, *limits], [f"a{place}"], f"act{place}"))
            tensor = f"a{place}"
    weights += [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 6))]
    shape = [2, "channels", 5, 5]
    ends = [make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (tensor, *outputs)]
    graph = helper.make_graph(
        nodes, "g", [make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 5, 5])], ends, initializer=weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model, seed=0):
    names = [output.name for output in model.graph.output]
    rows = np.random.default_rng(seed).normal(size=(2, 4, 5, 5)).astype(np.float32)
    return open_session(model, names, where="test").run(names, {"x": rows})


def spread_of(model, name):
    weight = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)
    sizes = np.abs(weight).reshape(len(weight), -1).max(1)
    return sizes.max() / sizes.min()


@settings(max_examples=25, deadline=None)
@given(
    layers=st.lists(st.tuples(st.sampled_from([4, 8]), st.sampled_from([1, 2, "depthwise"])), min_size=2, max_size=5),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_the_net_computes_the_same_after_equalization(layers, data, seed):
    between = [data.draw(st.sampled_from(["Relu", ""])) for _ in layers]
    model = chain(layers, between, seed=seed, spread=1.5)
    done = equalize(model, where="test")
    assert len(done.pairs) == len(layers) - 1 and done.clipped == 0
    (before,), (after,) = run(model), run(done.model)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * np.abs(before).max())


def test_both_sides_of_a_pair_get_the_same_range_a_channel():
    model = chain([(8, 1), (8, 1)], ["Relu", ""])
    done = equalize(model, where="test").model
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in done.graph.initializer}
    outgoing = np.abs(arrays["w0"]).max((1, 2, 3))
    incoming = np.abs(arrays["w1"]).max((0, 2, 3))
    np.testing.assert_allclose(outgoing, incoming, rtol=1e-3)
    assert spread_of(done, "w0") < spread_of(model, "w0")


def test_a_relu6_a_branch_and_an_output_on_the_way_are_left_alone():
    assert [
        len(part) if isinstance(part, list) else part for part in pairs(chain([(4, 1)] * 3, ["Clip", "Relu", ""]))
    ] == [
        1,
        1,
    ]
    assert pairs(chain([(4, 1)] * 2, ["Relu", ""], outputs=["c0"])) == ([], 0)
    branched = chain([(4, 1)] * 2, ["Relu", ""])
    branched.graph.node.append(helper.make_node("Add", ["c1", "a0"], ["sum"], "add"))
    assert pairs(branched) == ([], 0)


def test_a_weight_that_two_nodes_share_is_left_alone():
    model = chain([(4, 1)] * 3, ["Relu", "Relu", ""])
    model.graph.node[4].input[1] = "w0"
    assert pairs(model) == ([], 0)


def test_a_channel_that_is_all_but_dead_keeps_its_bias():
    model = chain([(4, 1)] * 2, ["Relu", ""])
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w0")
    array = numpy_helper.to_array(weight).copy()
    array[2] = 0
    array[3] = 1e-12
    weight.CopyFrom(numpy_helper.from_array(array, "w0"))
    done = equalize(model, where="test").model
    biases = [next(numpy_helper.to_array(t) for t in m.graph.initializer if t.name == "b0") for m in (model, done)]
    np.testing.assert_array_equal(biases[0][2:], biases[1][2:])


@pytest.mark.parametrize(
    ("activation", "beside"),
    [("Sigmoid", ""), ("Clip", "; 1 stand around a ReLU6, which cannot be equalized")],
)
def test_nothing_to_equalize_is_said(activation, beside):
    with pytest.raises(ExportError) as error:
        equalize(chain([(4, 1)] * 2, [activation, ""]), where="net.onnx")
    assert str(error.value) == (
        "net.onnx: nothing to equalize: no two convolutions follow each other with a Relu or nothing between them"
        f"{beside}; leave equalize out"
    )


def test_relu6_becomes_relu_where_that_is_asked_for_and_only_between_convolutions():
    model = chain([(8, 1), (8, "depthwise"), (8, 1)], ["Clip", "Clip", "Clip"], spread=1.0)
    found = equalize(model, where="net.onnx", relax=True)
    assert (len(found.pairs), found.clipped) == (2, 0)
    assert [node.op_type for node in found.model.graph.node] == ["Conv", "Relu", "Conv", "Relu", "Conv", "Clip"]
    assert [node.op_type for node in model.graph.node].count("Clip") == 3, "the model that was given stays as it was"
    assert all(
        np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(run(relaxed(model)), run(found.model), strict=True)
    )


def test_a_quantized_file_says_how_many_pairs_relu6_gave(tmp_path):
    path = tmp_path / "net.onnx"
    save_model(chain([(8, 1), (8, "depthwise"), (8, 1)], ["Clip", "Clip", ""], spread=1.0), path)
    samples = [np.random.default_rng(seed).normal(size=(2, 4, 5, 5)).astype(np.float32) for seed in range(4)]
    quantize_int8(path, tmp_path / "q.onnx", form="cpu", batches=samples, equalize="relu6")
    assert read_metadata(tmp_path / "q.onnx")["equalized_pairs"] == "2"


def test_it_brings_back_what_uneven_channels_lose(tmp_path):
    # Activations are quantized a tensor, so a channel a hundred times louder than the rest leaves them few levels, and
    # the next layer, which turns them down again, does not undo that.
    model = chain([(8, 1), (8, "depthwise"), (8, 1)], ["Relu", "Relu", ""], spread=0)
    loud = np.exp(np.random.default_rng(1).normal(scale=2.5, size=8)).astype(np.float32)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name in ("w0", "b0"):
            tensor.CopyFrom(numpy_helper.from_array((array.T * loud).T, tensor.name))
        elif tensor.name == "w1":
            tensor.CopyFrom(numpy_helper.from_array((array.T / loud).T, tensor.name))
    save_model(model, tmp_path / "net.onnx")
    rows = [np.random.default_rng(seed).normal(size=(2, 4, 5, 5)).astype(np.float32) for seed in range(8)]
    found = {}
    for even in (False, True):
        lines: list[str] = []
        path = quantize_int8(
            tmp_path / "net.onnx", tmp_path / f"{even}.onnx", form="cpu", batches=rows, equalize=even, say=lines.append
        ).path
        with (
            open_runner("onnxruntime", tmp_path / "net.onnx", threads=1) as a,
            open_runner("onnxruntime", path, threads=1) as b,
        ):
            found[even] = compare(a, b, rows).sqnr_db
        assert ("equalize: 2 pairs of convolutions, 0 left alone around a ReLU6" in lines) is even
        assert read_metadata(path).get("equalized_pairs") == ("2" if even else None)
    assert found[True] > found[False] + 3, found


def test_a_real_net_is_the_same_after_equalization(tmp_path):
    done = equalize(load_model(file("fp32")), where="test")
    assert len(done.pairs) == 2, "the two convolutions of each block"
    save_model(done.model, tmp_path / "even.onnx")
    with (
        open_runner("onnxruntime", file("fp32"), threads=1) as a,
        open_runner("onnxruntime", tmp_path / "even.onnx", threads=1) as b,
    ):
        assert compare(a, b, feeds()).sqnr_db > 100
    for form in ("portable", "cpu"):
        quantize_int8(file("fp32"), tmp_path / f"{form}.onnx", form=form, batches=batches(), equalize=True)
