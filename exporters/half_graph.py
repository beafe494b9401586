"""An fp32 ONNX graph computed in half: every float tensor in fp16 but those around the nodes that stay in fp32.

Inputs and outputs of the graph stay fp32. A tensor that is wanted in both types gets one Cast for all its readers, and
between two nodes that stay in fp32 there is none: a value beyond fp16 passes from one to the other as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from exporters.artifact import ExportError
from exporters.onnx_file import graphs
from exporters.opset import opset_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

FP16_MAX = 65504.0
# Smaller magnitudes are raised to this, the smallest number of fp16, so that an epsilon does not become a zero divisor.
FP16_TINY = 2.0**-24
# Operators that onnxruntime or TensorRT run in fp32 alone, whatever the standard allows.
_UNSERVED = {"CumSum", "Max", "Min", "NonMaxSuppression", "Range", "Resize", "RoiAlign", "TopK", "Upsample"}
# Operators that make floats of nothing, in a type that need not be written down.
_MAKERS = {"Bernoulli", "Constant", "ConstantOfShape", "EyeLike", "Multinomial", "RandomNormal", "RandomNormalLike"}
SINGLE_OPS = frozenset({*_UNSERVED, *_MAKERS, "RandomUniform", "RandomUniformLike"})
_SUFFIX = "_fp16"


def half(values: np.ndarray) -> np.ndarray:
    """float32 as float16: to the nearest, no finite number to infinity and none but zero to zero."""
    kept = np.where(np.isfinite(values), np.clip(values, -FP16_MAX, FP16_MAX), values)
    tiny = (kept != 0) & (np.abs(kept) < FP16_TINY)
    return np.where(tiny, np.copysign(FP16_TINY, kept), kept).astype(np.float16)


def to_half(model: ModelProto, keep: Collection[str] = (), *, where: str) -> ModelProto:
    """A copy of the fp32 `model` in half but for the nodes named `keep`, which all have names of their own.

    Operators without an fp16 form, and those with graphs of their own inside (If, Loop, Scan), stay in fp32 as well.
    """
    from onnx import ModelProto

    made = ModelProto()
    made.CopyFrom(model)
    constants_as_weights(made)
    _Halver(made, frozenset(keep), where).run()
    del made.graph.value_info[:]
    return made


def constants_as_weights(model: ModelProto) -> None:
    """Constant nodes of the main graph as initializers, in place, so that weights lie in one place."""
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        attribute = node.attribute[0] if node.attribute else None
        if attribute is None or attribute.name.startswith("sparse") or attribute.name.startswith("value_string"):
            continue
        value = onnx.helper.get_attribute_value(attribute)
        kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
        graph.initializer.append(
            value if attribute.name == "value" else numpy_helper.from_array(np.asarray(value, kinds[attribute.name]))
        )
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


def single_inputs(node: NodeProto, opset: int) -> list[bool] | None:
    """For each input, whether the standard wants it in fp32 whatever the others are; None without an fp16 form."""
    from onnx import defs

    if node.domain not in ("", "ai.onnx") or node.op_type in SINGLE_OPS or not defs.has(node.op_type, opset):
        return None
    schema = defs.get_schema(node.op_type, opset)
    halves = {item.type_param_str for item in schema.type_constraints if "tensor(float16)" in item.allowed_type_strs}
    formal = list(schema.inputs)
    found = []
    for place in range(len(node.input)):
        kind = formal[min(place, len(formal) - 1)].type_str if formal else ""
        found.append(kind not in halves)
    outputs = [item.type_str for item in schema.outputs[: len(node.output)]]
    floats = [item.type_param_str for item in schema.type_constraints if "tensor(float)" in item.allowed_type_strs]
    single = any(kind == "tensor(float)" or (kind in floats and kind not in halves) for kind in outputs)
    return None if single else found


class _Halver:
    def __init__(self, model: ModelProto, keep: frozenset[str], where: str) -> None:
        self.graph = model.graph
        self.opset = opset_of(model)
        self.where = where
        self.keep = keep
        self.kinds = element_types(model)
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.wanted_single = self._wanted_single()
        self.halves: dict[str, str] = {}  # fp32 name -> the name of the same tensor in half
        self.new: list[NodeProto] = []

    def run(self) -> None:
        """Node by node in the order of computation; what a node reads is there in its own type or made so by a Cast."""
        native_half: set[str] = set()
        for node in self.graph.node:
            singles = self._kept(node)
            if singles is None:
                self.new.append(node)
                continue
            for place, name in enumerate(node.input):
                if name and not singles[place] and self._is_float(name) and name not in native_half:
                    node.input[place] = self._half_of(name)
            _retype(node)
            self.new.append(node)
            for place, name in enumerate(node.output):
                if not name or not self._is_float(name):
                    continue
                if name not in self.wanted_single:
                    native_half.add(name)
                    continue
                # The fp32 tensor keeps its name, since outputs and inner graphs ask for it by that.
                node.output[place] = self.halves[name] = self._name(name)
                self.new.append(self._cast(self.halves[name], name, single=True))
        kept = [
            tensor for name, tensor in self.weights.items() if name not in self.halves or name in self.wanted_single
        ]
        kept += [self._half_weight(name) for name in self.halves if name in self.weights]
        copies = [type(item).FromString(item.SerializeToString()) for item in self.new]
        weights = [type(item).FromString(item.SerializeToString()) for item in kept]
        del self.graph.node[:]
        del self.graph.initializer[:]
        self.graph.node.extend(copies)
        self.graph.initializer.extend(weights)

    def _kept(self, node: NodeProto) -> list[bool] | None:
        """None for a node that stays as it is; else what `single_inputs` says."""
        if node.name in self.keep or any(True for _ in _inner(node)):
            return None
        return single_inputs(node, self.opset)

    def _wanted_single(self) -> set[str]:
        """The float tensors that something reads in fp32."""
        wanted = {value.name for value in self.graph.output}
        for node in self.graph.node:
            singles = self._kept(node)
            if singles is None:
                wanted |= {*node.input, *_inner_names(node)}
            else:
                wanted |= {name for name, single in zip(node.input, singles, strict=True) if single}
        return wanted

    def _is_float(self, name: str) -> bool:
        from onnx import TensorProto

        if name not in self.kinds:
            maker = next((node for node in self.graph.node if name in node.output), None)
            at = f"node {maker.name or maker.output[0]!r} ({maker.op_type})" if maker is not None else "the graph"
            raise ExportError(
                f"{self.where}: the type of {name!r}, which {at} makes, is not known, so it cannot be converted to "
                "fp16; export the model with standard ONNX operators"
            )
        return self.kinds[name] == TensorProto.FLOAT

    def _half_of(self, name: str) -> str:
        """The name of an fp32 tensor in half, made when it is asked for the first time."""
        if name not in self.halves:
            # A weight that nothing reads in fp32 keeps its name.
            plain = name in self.weights and name not in self.wanted_single
            self.halves[name] = name if plain else self._name(name)
            if name not in self.weights:
                self.new.append(self._cast(name, self.halves[name], single=False))
        return self.halves[name]

    def _name(self, name: str) -> str:
        found = f"{name}{_SUFFIX}"
        while found in self.kinds or found in self.halves.values():
            found += "_"
        return found

    def _cast(self, source: str, target: str, *, single: bool) -> NodeProto:
        from onnx import TensorProto, helper

        to = TensorProto.FLOAT if single else TensorProto.FLOAT16
        return helper.make_node("Cast", [source], [target], f"{target}_cast", to=to)

    def _half_weight(self, name: str) -> TensorProto:
        from onnx import numpy_helper

        return numpy_helper.from_array(half(numpy_helper.to_array(self.weights[name])), self.halves[name])


def element_types(model: ModelProto) -> dict[str, int]:
    """Tensor name -> its `TensorProto` element type, of all tensors of the main graph whose type can be inferred."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    return {name: kind for name, kind in kinds.items() if kind} | {
        tensor.name: tensor.data_type for tensor in graph.initializer
    }


def _retype(node: NodeProto) -> None:
    """An attribute that states the type of the result says half where it said float."""
    from onnx import TensorProto, numpy_helper

    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(half(numpy_helper.to_array(attribute.t)), attribute.t.name))


def _inner(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from graphs(attribute.g)
        for inner in attribute.graphs:
            yield from graphs(inner)


def _inner_names(node: NodeProto) -> set[str]:
    """Everything that the graphs inside a node read, of their own or from outside."""
    return {name for graph in _inner(node) for inner in graph.node for name in inner.input} | {
        value.name for graph in _inner(node) for value in graph.output
    }


def make_names(model: ModelProto) -> Mapping[str, NodeProto]:
    """Node name -> node of the main graph, after each was given a name of its own, in place."""
    from exporters.layer_names import name_nodes

    name_nodes(model)
    return {node.name: node for node in model.graph.node}
