"""Bias correction: afterwards no layer's mean is shifted by quantization; nothing else has changed."""

import numpy as np
import onnx
import pytest
from exporter_nets import batches, file
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_tensor_value_info

from exporters.artifact import read_metadata
from exporters.bias_correction import cut, with_biases
from exporters.calibrate import open_session
from exporters.onnx_file import load_model, save_model
from exporters.quantize_onnx import prepare, quantize_int8

FORMS = ("portable", "cpu")


def means(model, nodes, rows, name="input"):
    """Node name -> the mean of each output channel over all rows."""
    names = [node.output[0] for node in model.graph.node if node.name in nodes]
    session = open_session(model, names, where="test")
    found = [session.run(names, {name: row}) for row in rows]
    return {
        key: np.concatenate([np.moveaxis(run[place], 1, -1).reshape(-1, run[place].shape[1]) for run in found]).mean(0)
        for place, key in enumerate(node.name for node in model.graph.node if node.name in nodes)
    }


def layers(model):
    return {node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")}


@pytest.mark.parametrize("form", FORMS)
def test_no_channel_of_any_layer_is_shifted_afterwards(tmp_path, form):
    lines: list[str] = []
    paths = [
        quantize_int8(
            file("fp32"),
            tmp_path / f"{on}.onnx",
            form=form,
            batches=batches(),
            bias_correction=on,
            method="percentile",
            percentile=99.5,
            say=lines.append,
        ).path
        for on in (False, True)
    ]
    single = load_model(file("fp32"))
    expected = means(single, layers(single), batches())
    shifts = []
    for path in paths:
        found = means(load_model(path), layers(single), batches())
        assert found.keys() == expected.keys()
        shifts.append({key: np.abs(found[key] - expected[key]).max() for key in expected})
    assert max(shifts[0].values()) > 1e-3
    # A float bias takes the whole error; an int32 one is rounded to a step, which is the product of two scales.
    assert max(shifts[1].values()) < (1e-6 if form == "portable" else 2e-4), shifts
    assert lines[-1] == "bias correction: 7 layers"
    assert read_metadata(paths[1])["corrected_biases"] == "7" and "corrected_biases" not in read_metadata(paths[0])


@pytest.mark.parametrize("form", FORMS)
def test_only_biases_differ(tmp_path, form):
    plain, corrected = (
        load_model(
            quantize_int8(file("fp32"), tmp_path / f"{on}.onnx", form=form, batches=batches(), bias_correction=on).path
        )
        for on in (False, True)
    )
    assert [node.op_type for node in plain.graph.node] == [node.op_type for node in corrected.graph.node]
    tensors = [{t.name: numpy_helper.to_array(t) for t in model.graph.initializer} for model in (plain, corrected)]
    changed = {name for name in tensors[0] if not np.array_equal(tensors[0][name], tensors[1][name])}
    assert changed and all("bias" in name for name in changed), changed


def test_a_layer_without_a_bias_gets_one_and_a_shared_one_is_split(tmp_path):
    rng = np.random.default_rng(0)
    value = [make_tensor_value_info(name, TensorProto.FLOAT, [2, 4, 6, 6]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(rng.normal(size=(4, 4, 1, 1)).astype(np.float32), f"w{i}") for i in range(3)]
    weights.append(numpy_helper.from_array(np.ones(4, np.float32), "b"))
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b"], ["h0"]),
        helper.make_node("Conv", ["h0", "w1"], ["h1"]),
        helper.make_node("Conv", ["h1", "w2", "b"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    given = with_biases(model)
    assert [list(node.input) for node in given.graph.node] == [
        ["x", "w0", "w0.bias"],
        ["h0", "w1", "w1.bias"],
        ["h1", "w2", "w2.bias"],
    ]
    values = {t.name: numpy_helper.to_array(t).tolist() for t in given.graph.initializer}
    assert values["w0.bias"] == [1] * 4 and values["w1.bias"] == [0] * 4
    save_model(model, tmp_path / "net.onnx")
    rows = [rng.normal(size=(2, 4, 6, 6)).astype(np.float32) for _ in range(4)]
    for form in FORMS:
        path = quantize_int8(
            tmp_path / "net.onnx", tmp_path / f"{form}.onnx", form=form, batches=rows, bias_correction=True
        ).path
        assert read_metadata(path)["corrected_biases"] == "3"
        expected, found = (
            open_session(m, ["y"], where="").run(["y"], {"x": rows[0]})[0] for m in (model, load_model(path))
        )
        assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("form", FORMS)
def test_layers_kept_in_float_are_not_corrected(tmp_path, form):
    path = quantize_int8(
        file("fp32"),
        tmp_path / "q.onnx",
        form=form,
        batches=batches(),
        bias_correction=True,
        keep_fp32=["fc", "blocks.0"],
    ).path
    assert read_metadata(path)["corrected_biases"] == "4"
    assert len(read_metadata(path)["kept_fp32"].split()) == 3


def test_a_cut_graph_holds_only_what_it_needs():
    model = prepare(file("fp32"), batches(), form="cpu").model
    first = next(node for node in model.graph.node if node.op_type == "Relu")
    part = cut(model, first.output[0])
    assert [node.op_type for node in part.graph.node] == ["Conv", "Relu"]
    assert len(part.graph.initializer) == 2
    row = {"input": batches(1)[0]}
    whole, alone = (open_session(m, [first.output[0]], where="").run(None, row)[0] for m in (model, part))
    np.testing.assert_array_equal(whole, alone)
    assert onnx.ModelProto.FromString(model.SerializeToString()) == model
