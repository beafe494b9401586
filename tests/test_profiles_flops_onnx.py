"""Counts of ONNX graphs: closed forms of each operator, open sizes, quantized graphs, and exports of torch."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiles.errors import ProfileError
from profiles.flops import count_onnx


def save(path: Path, nodes, inputs, *, weights=None, microsoft=False) -> Path:
    """A file with float inputs {name: shape} and weights {name: array}."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18)] + [helper.make_opsetid("com.microsoft", 1)] * microsoft
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def floats(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("operator", "x", "w", "macs"),
    [
        (("Conv", {"strides": [2, 2], "pads": [1, 1, 1, 1]}), (2, 4, 8, 8), (6, 4, 3, 3), 2 * 6 * 16 * 36),
        (("Conv", {"group": 4}), (1, 4, 8, 8), (8, 1, 3, 3), 8 * 36 * 9),
        (("Conv", {}), (1, 2, 9), (3, 2, 4), 3 * 6 * 8),
        (("ConvTranspose", {"strides": [2, 2], "group": 2}), (1, 4, 5, 5), (4, 3, 3, 3), 4 * 25 * 27),
        (("Gemm", {"transB": 1}), (5, 7), (3, 7), 105),
        (("Gemm", {"transA": 1}), (7, 5), (7, 3), 105),
        (("MatMul", {}), (2, 5, 7), (7, 3), 210),
        (("MatMul", {}), (7,), (7,), 7),
    ],
)
def test_closed_forms(tmp_path, operator, x, w, macs):
    name, attributes = operator
    node = helper.make_node(name, ["x", "w"], ["y"], **attributes)
    counts = count_onnx(save(tmp_path / "m.onnx", [node], {"x": x}, weights={"w": floats(*w)}))
    assert (counts.macs, counts.flops) == (macs, 2 * macs)
    assert counts.params == counts.conv_linear_weights == np.prod(w)
    assert counts.uncounted == {}


def test_what_is_not_counted_is_listed_and_moves_are_not(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Add", ["c", "w"], ["y"]),
    ]
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, {"x": (4, 4)}, weights={"w": floats(4)}))
    assert counts.uncounted == {"Add": 1, "Relu": 2}
    assert (counts.macs, counts.params, counts.conv_linear_weights) == (0, 4, 0)


def test_fused_and_integer_operators_of_onnx_runtime(tmp_path):
    zero, one = np.array(0, np.uint8), np.array(1.0, np.float32)
    nodes = [
        helper.make_node("FusedConv", ["x", "w"], ["a"], domain="com.microsoft", activation="Relu", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["b"]),
        helper.make_node("QLinearConv", ["b", "s", "z", "v", "s", "z", "s", "z"], ["c"]),
        helper.make_node("QLinearAdd", ["c", "s", "z", "c", "s", "z", "s", "z"], ["d"], domain="com.microsoft"),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("QLinearMatMul", ["e", "s", "z", "u", "s", "z", "s", "z"], ["f"]),
        helper.make_node("DequantizeLinear", ["f", "s", "z"], ["y"]),
    ]
    weights = {"w": floats(4, 3, 3, 3), "v": np.ones((5, 4, 1, 1), np.uint8), "u": np.ones((320, 7), np.uint8)}
    path = save(
        tmp_path / "m.onnx", nodes, {"x": (1, 3, 8, 8)}, weights={**weights, "s": one, "z": zero}, microsoft=True
    )
    counts = count_onnx(path)
    assert counts.macs == 4 * 64 * 27 + 5 * 64 * 4 + 320 * 7
    assert counts.conv_linear_weights == counts.params == 108 + 20 + 2240
    assert counts.uncounted == {"DequantizeLinear": 1, "QLinearAdd": 1, "QuantizeLinear": 1}


def test_quantize_dequantize_graph_counts_as_its_float_form(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bias"], ["y"]),
    ]
    weights = {
        "w": np.ones((6, 4, 3, 3), np.int8),
        "bias": floats(6),
        "sx": np.array(0.1, np.float32),
        "zx": np.array(0, np.int8),
        "sw": floats(6),
        "zw": np.zeros(6, np.int8),
    }
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, {"x": (1, 4, 8, 8)}, weights=weights))
    assert counts.macs == 6 * 36 * 36
    assert counts.conv_linear_weights == 216
    assert counts.params == 222
    assert counts.uncounted == {"DequantizeLinear": 2, "QuantizeLinear": 1}


@pytest.fixture
def open_batch(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    return save(tmp_path / "m.onnx", [node], {"x": ("batch", 3, 8, 8)}, weights={"w": floats(2, 3, 1, 1)})


def test_open_sizes_are_asked_for_and_taken(open_batch):
    with pytest.raises(ProfileError) as caught:
        count_onnx(open_batch)
    assert str(caught.value) == (
        f"{open_batch}: input 'x' has open sizes batch,3,8,8; give --input, such as --input 1,3,8,8"
    )
    assert count_onnx(open_batch, {"x": (1, 3, 8, 8)}).macs == 384
    assert count_onnx(open_batch, {"x": (5, 3, 8, 8)}).macs == 5 * 384


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"x": (1, 3, 9, 9)}, "input 'x' is batch,3,8,8; got 1,3,9,9; give sizes that fit it"),
        ({"x": (1, 3)}, "input 'x' is batch,3,8,8; got 1,3; give sizes that fit it"),
        ({"image": (1, 3, 8, 8)}, "has no input 'image'; its inputs are x"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(open_batch, shapes, told):
    with pytest.raises(ProfileError) as caught:
        count_onnx(open_batch, shapes)
    assert str(caught.value) == f"{open_batch}: {told}"


def test_products_behind_an_unknown_operator_are_refused(tmp_path):
    nodes = [
        helper.make_node("Mystery", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="head"),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"x": (1, 4)}, weights={"w": floats(4, 2)}, microsoft=True)
    with pytest.raises(ProfileError) as caught:
        count_onnx(path)
    assert str(caught.value) == (
        f"{path}: shape of 'a' at node 'head' (MatMul) cannot be told; "
        "save the model with shapes (onnx.shape_inference) or count the model it was made from"
    )


@pytest.mark.parametrize(("content", "told"), [(b"\xff" * 9, "give one"), (b"", "it holds no graph")])
def test_other_files_are_refused(tmp_path, content, told):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=f"not an ONNX file; {told}"):
        count_onnx(path)
    with pytest.raises(ProfileError, match=r"absent\.onnx: no such file"):
        count_onnx(tmp_path / "absent.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_and_its_export_agree(tmp_path, dynamic):
    torch = pytest.importorskip("torch")
    from torch import nn

    from profiles.flops import count_torch

    torch.set_num_threads(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            self.up = nn.ConvTranspose2d(8, 8, 2, 2, groups=2)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            y = self.up(self.stem(x)).flatten(2).transpose(1, 2)
            return self.head(self.block(y).mean(1))

    net, path = Net().eval(), tmp_path / "net.onnx"
    for value in (*net.parameters(), net.stem[1].running_mean):  # the exporter stores equal tensors once
        nn.init.uniform_(value)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.onnx.export(
        net, (torch.zeros(2, 3, 8, 8),), path, dynamo=True, external_data=False, verbose=False, dynamic_shapes=shapes
    )
    name = onnx.load(path).graph.input[0].name
    graph = count_onnx(path, {name: (2, 3, 8, 8)})
    module = count_torch(net, (2, 3, 8, 8))
    assert graph.macs == module.macs
    assert graph.conv_linear_weights == module.conv_linear_weights
    assert graph.params == module.params - 8  # the folded normalisation leaves a bias of 8 for 16 numbers
