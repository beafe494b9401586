"""Run the command line inside the test process, errors and exit codes included, and small models to run it on."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters import Preprocessing
from exporters.onnx_file import set_metadata
from pipeline.cli.main import main

CLASSES = ("dark", "bright")


@dataclass(frozen=True, kw_only=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def cli(*args: str | Path) -> Result:
    """`edgestill ARGS`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(arg) for arg in args])
            raise AssertionError("main returned")
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int), code
    return Result(code=code, out=out.getvalue(), err=err.getvalue())


def brightness_net(
    path: Path, *, batch: int | str = 1, channels: int = 3, side: int = 4, metadata: bool = True
) -> Path:
    """A classifier of mean brightness: a 1x1 convolution, a pool and a linear layer; preprocessing x / 255 - 0.5."""
    weights = {
        "kernel": np.full((2, channels, 1, 1), 1 / channels, np.float32),
        "head": np.array([[-10.0, 10.0], [-10.0, 10.0]], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["maps"], name="conv"),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "head"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, channels, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata:
        preprocessing = Preprocessing(
            mean=(0.5,) * channels,
            std=(1.0,) * channels,
            input_size=(channels, side, side),
            class_names=CLASSES,
            color="RGB" if channels == 3 else "L",
        )
        set_metadata(model, preprocessing.to_metadata())
    onnx.save(model, path)
    return path
