"""Sensitivity finds the layer that was made fragile, and says the same as quantizing by hand does."""

import math

import numpy as np
import pytest
from exporter_nets import batches, file
from onnx import numpy_helper

from exporters import open_runner
from exporters.artifact import ExportError
from exporters.onnx_file import load_model, save_model
from exporters.parity import compare
from exporters.quantize_onnx import quantize_int8
from exporters.sensitivity import LayerSensitivity, layer_sensitivity, sqnr_db

FORMS = ("portable", "cpu")


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    """The small net with weights of blocks.1.conv2 a thousand times larger, on a channel that is never used."""
    model = load_model(file("fp32"))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    # A channel that is always zero meets weights that are huge: nothing changes in float, the grid of the others does.
    before = next(node for node in model.graph.node if "blocks.1.conv1.weight" in node.input)
    for name, place, factor in (
        (before.input[1], (0,), 0),
        (before.input[2], (0,), 0),
        ("blocks.1.conv2.weight", (slice(None), 0), 1000),
    ):
        array = numpy_helper.to_array(tensors[name]).copy()
        array[place] *= factor
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    path = tmp_path_factory.mktemp("fragile") / "net.onnx"
    save_model(model, path)
    return path


@pytest.mark.parametrize("form", [*FORMS, "gpu", "trt86"])
def test_the_fragile_layer_comes_first_and_leaving_it_in_float_wins_most(fragile, form):
    found = layer_sensitivity(fragile, form=form, batches=batches())
    worst = found.layers[0]
    assert (worst.layer, worst.operator, worst.label) == ("blocks.1.conv2", "Conv", "blocks.1.conv2")
    assert worst.alone_db < found.layers[1].alone_db - 10
    assert max(found.layers, key=lambda layer: layer.rest_db) is worst and worst.rest_db > found.all_db + 10
    assert [layer.alone_db for layer in found.layers] == sorted(layer.alone_db for layer in found.layers)
    # In the cpu form an addition lies between the Q/DQ of its neighbours and cannot be left in float by itself.
    assert {layer.operator for layer in found.layers} == {"Conv", "Gemm", *(["Add"] if form != "cpu" else [])}
    assert found.samples == 8


@pytest.mark.parametrize("form", FORMS)
def test_it_says_what_quantizing_with_that_layer_kept_gives(fragile, tmp_path, form):
    found = layer_sensitivity(fragile, form=form, batches=batches(), keep_fp32=["fc"])
    assert "fc" not in {layer.layer for layer in found.layers}
    worst = found.layers[0]
    for keep, expected in ((["fc"], found.all_db), (["fc", worst.label], worst.rest_db)):
        path = quantize_int8(fragile, tmp_path / "q.onnx", form=form, batches=batches(), keep_fp32=keep).path
        with open_runner("onnxruntime", fragile, threads=1) as a, open_runner("onnxruntime", path, threads=1) as b:
            # The runtime's integer kernels round a little differently from the graph run step by step.
            assert compare(a, b, batches()).sqnr_db == pytest.approx(expected, abs=1.5)


def test_all_layers_kept_leaves_nothing_to_rank():
    names = ["conv", "blocks", "fc", "node_add", "node_add_1"]
    with pytest.raises(ExportError) as error:
        layer_sensitivity(file("fp32"), form="portable", batches=batches(), keep_fp32=names)
    assert str(error.value) == f"{file('fp32')}: no layer to rank; all are kept in fp32"


def test_sqnr_and_json():
    signal = np.array([3.0, 4.0])
    assert sqnr_db(signal, signal + np.array([0, 0.5])) == pytest.approx(20)
    assert sqnr_db(signal, signal) == math.inf
    assert sqnr_db(signal, signal * np.nan) == -math.inf
    layer = LayerSensitivity(node="n", operator="Add", layer="", alone_db=math.inf, rest_db=12.5)
    assert layer.label == "n"
    assert layer.to_json() == {"node": "n", "operator": "Add", "layer": "", "alone_db": None, "rest_db": 12.5}
