"""Which of our ONNX files an edition of TensorRT will take, said without it: the exporter's own checks on small graphs.

Nothing of NVIDIA's is needed, so a host can ask for a device that it is not, before anything is trained or exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporters.tensorrt_api import Typing, version_number
from exporters.tensorrt_check import faults, rules_of
from exporters.to_onnx import OLDEST_OPSET

if TYPE_CHECKING:
    from onnx import ModelProto

# What is exported: form -> precision, operator set, and of Q/DQ the types of scales and of quantized activations.
FORMS = {
    "fp32": ("fp32", OLDEST_OPSET, "", ""),
    "fp16": ("fp16", OLDEST_OPSET, "", ""),
    "portable": ("int8", OLDEST_OPSET, "FLOAT", "INT8"),
    "gpu": ("int8", 19, "FLOAT16", "INT8"),
    "trt86": ("int8", 17, "FLOAT", "INT8"),
    "cpu": ("int8", OLDEST_OPSET, "FLOAT", "UINT8"),
}
TYPING = {
    "flags": "precision by builder flags",
    "opt-in": "strongly typed, the file carries the precision",
    "always": "strongly typed, the file carries the precision",
}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Whether an edition takes a form of file: `why` names the reason when it does not, or what to do first."""

    form: str
    precision: str
    opset: int
    works: bool
    why: str | None


def typing_of(name: str, version: str) -> Typing:
    """What `tensorrt_api.probe` will find on the device: by version, since the module is not here to be asked."""
    number = version_number(version)
    if name == "tensorrt-rtx" or number >= (11, 0):
        return "always"
    return "opt-in" if number >= (10, 0) else "flags"


def forecast(name: str, version: str) -> list[Forecast]:
    """Each form for the runtime `name` at `version`, such as ("tensorrt", "8.6.2").

    A float file with too new an operator set still works where the build can lower it (`tensorrt_opset`): that is said.
    """
    rules = rules_of(name, version)
    found = []
    for form, (precision, opset, scale, stored) in FORMS.items():
        # The opset's fault comes first; one of the node says more, since another opset would not mend it.
        why = next(reversed([*faults(_example(opset, scale, stored), rules)]), None)
        lowered = False
        if why and precision != "int8" and opset > rules.opsets[1]:
            lowered = next(faults(_example(rules.opsets[1], scale, stored), rules), None) is None
            why = f"the build converts it from opset {opset}"
        found.append(
            Forecast(
                form=form,
                precision=precision,
                opset=rules.opsets[1] if lowered else opset,
                works=why is None or lowered,
                why=why,
            )
        )
    return found


def _example(opset: int, scale: str, stored: str) -> ModelProto:
    """One convolution, with Q/DQ on its input and weights where `scale` and `stored` name their types."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.ones((1, 1, 1, 1), np.float32)
    nodes, constants, feeds = [], [], ("x", "w")
    if scale:
        kinds = {"FLOAT": np.float32, "FLOAT16": np.float16, "INT8": np.int8, "UINT8": np.uint8}
        constants = [
            numpy_helper.from_array(np.array(1, kinds[scale]), "scale"),
            numpy_helper.from_array(np.array(0, kinds[stored]), "zero"),
            numpy_helper.from_array(np.array(0, np.int8), "weight_zero"),
            numpy_helper.from_array(kernel.astype(np.int8), "w_q"),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"], name="quantize"),
            helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_d"], name="dequantize"),
            helper.make_node("DequantizeLinear", ["w_q", "scale", "weight_zero"], ["w_d"], name="weights"),
        ]
        feeds = ("x_d", "w_d")
    else:
        constants = [numpy_helper.from_array(kernel, "w")]
    nodes.append(helper.make_node("Conv", list(feeds), ["y"], name="conv"))
    x, y = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2])] for name in ("x", "y"))
    graph = helper.make_graph(nodes, "example", x, y, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
