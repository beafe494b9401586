"""ONNX files as other tools write them: older opsets, odd names, open sizes, weights wherever they may lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

CLASSES = 3
SIDE = 8


def images(folder: Path, *, each: int = 14, classes: int = CLASSES) -> Path:
    """Class folders of small pictures: each class has a colour of its own, with noise on it."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"class-{label}"
        place.mkdir(parents=True)
        for number in range(each):
            picture = rng.integers(0, 90, size=(SIDE, SIDE, 1)).repeat(3, axis=2)
            picture[..., label % 3] += rng.integers(60, 160)
            picture[2:6, 2:6] //= 2
            Image.fromarray(picture.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def weights_of(seed: int = 0) -> dict[str, np.ndarray]:
    """A convolution that sees the three colours, and a classifier that tells them apart."""
    rng = np.random.default_rng(seed)
    conv = np.zeros((6, 3, 3, 3), np.float32)
    for channel in range(3):
        conv[channel, channel, 1, 1] = 1.0
    conv[3:] = rng.normal(0, 0.2, size=(3, 3, 3, 3))
    head = np.zeros((CLASSES, 6), np.float32)
    head[:, :3] = 2 * np.eye(3) - 1
    head[:, 3:] = rng.normal(0, 0.05, size=(CLASSES, 3))
    return {"w": conv, "b": np.zeros(6, np.float32), "h": head, "hb": np.zeros(CLASSES, np.float32)}


def network(
    *,
    opset: int = 17,
    batch: int | str = 1,
    names: dict[str, str] | None = None,
    node_names: tuple[str, ...] = ("conv", "relu", "pool", "flat", "head"),
    as_inputs: bool = False,
    as_constants: bool = False,
    further_output: bool = False,
    norm: bool = False,
    domains: tuple[tuple[str, int], ...] = (),
    side: int | str = SIDE,
) -> onnx.ModelProto:
    """Conv, (BatchNorm,) Relu, mean, Flatten, Gemm; `names` renames tensors, so that any text can be one."""
    called = {name: name for name in ("x", "y", "w", "b", "h", "hb", "c", "r", "p", "f")} | (names or {})
    weights = {called[name]: values for name, values in weights_of().items()}
    nodes = [helper.make_node("Conv", [called["x"], called["w"], called["b"]], [called["c"]], pads=[1] * 4)]
    if norm:
        ones = {"scale": 1.5, "shift": 0.1, "mu": 0.2, "var": 0.9}
        weights |= {name: np.full(6, value, np.float32) for name, value in ones.items()}
        nodes.append(helper.make_node("BatchNormalization", [called["c"], *ones], ["normed"], "norm"))
    nodes += [
        helper.make_node("Relu", ["normed" if norm else called["c"]], [called["r"]]),
        helper.make_node("GlobalAveragePool", [called["r"]], [called["p"]]),
        helper.make_node("Flatten", [called["p"]], [called["f"]]),
        helper.make_node("Gemm", [called["f"], called["h"], called["hb"]], [called["y"]], transB=1),
    ]
    for node, name in zip([node for node in nodes if node.name != "norm"], node_names, strict=True):
        node.name = name
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    inputs = [helper.make_tensor_value_info(called["x"], TensorProto.FLOAT, [batch, 3, side, side])]
    if as_inputs:
        inputs += [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, list(t.dims)) for t in tensors]
    if as_constants:
        nodes[:0] = [helper.make_node("Constant", [], [t.name], f"constant {t.name}", value=t) for t in tensors]
        tensors = []
    outputs = [helper.make_tensor_value_info(called["y"], TensorProto.FLOAT, [batch, CLASSES])]
    if further_output:
        outputs.append(helper.make_tensor_value_info(called["p"], TensorProto.FLOAT, [batch, 6, 1, 1]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    ir = 3 if as_inputs else {9: 4, 11: 6, 13: 7}.get(opset, 8)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*domain) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, producer_name="someone else")


def saved(model: onnx.ModelProto, path: Path, *, external: bool = False) -> Path:
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if external else {}
    onnx.save(model, str(path), **options)
    return path


FAMILY = {
    "opset 9": {"opset": 9},
    "opset 11": {"opset": 11, "norm": True},
    "opset 13": {"opset": 13},
    "opset 18": {"opset": 18, "norm": True},
    "weights as inputs": {"opset": 9, "as_inputs": True},
    "weights as constants": {"as_constants": True},
    "open batch": {"batch": "N"},
    "several outputs": {"further_output": True},
    "nameless nodes": {"node_names": ("",) * 5},
    "equal names": {"node_names": ("node",) * 5},
    "odd names": {
        "names": {"x": "input:0", "w": "модель/w ü", "c": "x_quantized", "y": "out put", "r": "w_scale", "b": "b/1:b"},
        "node_names": ("a/b:0", "näm e", "'q'", '"d"', "x_QuantizeLinear"),
    },
    "further domains": {"domains": (("com.microsoft", 1), ("ai.onnx.ml", 3), ("my.own", 7))},
}
