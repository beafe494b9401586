import math

import numpy as np
import onnx
import pytest
from exporter_nets import INPUT_SHAPE, batches, feeds, file, net
from onnx import numpy_helper

from exporters import open_runner
from exporters.artifact import ExportError, IOSpec
from exporters.parity import compare, first_divergence
from exporters.run_torch import TorchRunner


class Fixed:
    """A runner that answers with what it is told: closed forms need no net."""

    name, device, precision, threads, versions = "fixed", "cpu", "fp32", 1, {}
    inputs = (IOSpec(name="x", dtype="float32", shape=("n",)),)
    outputs = (IOSpec(name="y", dtype="float32", shape=("n", 2)),)

    def __init__(self, *rows):
        self.rows = np.array(rows, np.float32)

    def __call__(self, feeds):
        return {"y": self.rows[feeds["x"]]}


def test_closed_forms():
    # Errors 0, 1, 1, 0 on a signal of energy 9 + 1 + 1 + 4 = 15: SQNR = 10 log10(15 / 2).
    reference, candidate = Fixed([3, 1], [1, 2]), Fixed([3, 2], [2, 2])
    parity = compare(reference, candidate, [{"x": np.array([0])}, {"x": np.array([1])}])
    assert (parity.max_abs, parity.mean_abs, parity.n, parity.top1_flips) == (1.0, 0.5, 2, 1)
    assert parity.sqnr_db == pytest.approx(10 * math.log10(15 / 2))
    assert parity.cosine == pytest.approx(17 / math.sqrt(15 * 21))


def test_equal_outputs_and_outputs_that_are_nan():
    same = compare(Fixed([1, 2]), Fixed([1, 2]), [{"x": np.array([0])}])
    assert same.to_json()["sqnr_db"] is None and same.to_json()["n"] == same.scale - 1 == 1
    assert (same.max_abs, same.cosine, same.sqnr_db, same.top1_flips) == (0.0, pytest.approx(1.0), math.inf, 0)
    overflown = compare(Fixed([0, 2]), Fixed([math.inf, 2]), [{"x": np.array([0])}])
    assert overflown.sqnr_db == -math.inf and overflown.max_abs == math.inf and not overflown.cosine > 0
    broken = compare(Fixed([1, 2], [1, 2]), Fixed([math.nan, 2], [1, 2]), [{"x": np.array([0])}, {"x": np.array([1])}])
    assert all(math.isnan(value) for value in (broken.max_abs, broken.mean_abs, broken.cosine, broken.sqnr_db))


def test_onnx_equals_torch():
    with (
        TorchRunner(net(), threads=1, input_shape=INPUT_SHAPE) as torch,
        open_runner("onnxruntime", file("fp32"), threads=1) as ort,
    ):
        parity = compare(torch, ort, feeds())
    assert parity.max_abs < 1e-5 and parity.n == 8 and parity.top1_flips == 0


def test_no_samples_and_other_nets_are_refused():
    with pytest.raises(ExportError, match=r"^parity: no samples; give at least one batch$"):
        compare(Fixed([1, 2]), Fixed([1, 2]), [])
    with pytest.raises(ExportError) as error:
        compare(Fixed([1, 2]), Fixed([1, 2, 3]), [{"x": np.array([0])}])
    assert str(error.value) == (
        "parity: fixed gives outputs of shape [[1, 2]], fixed [[1, 3]]; compare forms of one net"
    )


@pytest.mark.parametrize(("form", "least_db"), [("fp32", math.inf), ("fp16", 50), ("portable", 18), ("cpu", 18)])
def test_good_hops_do_not_diverge(form, least_db):
    assert first_divergence(file("fp32"), file(form), feeds(), least_db) is None


@pytest.mark.parametrize("value", [7.0, math.nan, math.inf])
def test_the_damaged_layer_is_the_one_that_is_named(tmp_path, value):
    model = onnx.load(str(file("fp32")))
    convolution = [node for node in model.graph.node if node.op_type == "Conv"][2]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == convolution.input[1])
    array = numpy_helper.to_array(tensor).copy()
    array[0] += value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, str(tmp_path / "damaged.onnx"))
    found = first_divergence(file("fp32"), tmp_path / "damaged.onnx", batches(), 60)
    assert found is not None
    assert (found.node, found.operator, found.tensor) == (convolution.name, "Conv", convolution.output[0])
    assert str(found).startswith(f"{found.tensor} of node {found.node} (Conv), ") and str(found).endswith(" dB")


def test_graphs_without_a_common_tensor_are_refused(tmp_path):
    model = onnx.load(str(file("fp32")))
    for node in model.graph.node:
        node.input[:] = [f"other_{name}" if name not in ("input", "") else name for name in node.input]
        node.output[:] = [f"other_{name}" for name in node.output]
    for tensor in (*model.graph.initializer, *model.graph.output):
        tensor.name = f"other_{tensor.name}"
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(ExportError, match=r"have no tensor name in common; compare files of one export$"):
        first_divergence(file("fp32"), tmp_path / "other.onnx", batches(), 60)
