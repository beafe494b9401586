"""A float file in the newest operator set that an edition takes: torch exports 18 and later, TensorRT 8.6 stops at 17.

The file itself stays as it is. What the build reads in its place is converted by onnx and run beside it on a sample,
because a converted graph that is valid is not yet one that computes the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporters.artifact import ExportError, IOSpec
from exporters.base import missing_package
from exporters.onnx_file import graph_precision, io_specs, save_model
from exporters.opset import LEAST_DB, check_same, opset_of, to_opset
from exporters.tensorrt_check import rules_of
from exporters.tensorrt_options import Profile

if TYPE_CHECKING:
    from onnx import ModelProto

    from exporters.tensorrt_api import Edition

# One rounding of fp16 alone leaves 66 dB, and an operator that opset 17 has and 18 spells otherwise rounds elsewhere:
# MobileNetV3-small in fp16 keeps 65 dB. A wrong axis or mode leaves next to none.
LEAST_HALF_DB = 40.0


@contextmanager
def accepted(
    source: Path, model: ModelProto, edition: Edition, profiles: Mapping[str, Profile]
) -> Iterator[tuple[Path, ModelProto]]:
    """(file, model) to build from: `source` and `model`, or a temporary file in an operator set that `edition` takes.

    int8 files are left alone: each edition has a form of its own. What cannot be converted, or computes something else
    then, is an `ExportError` with its node.
    """
    where, newest = str(source), rules_of(edition.name, edition.version).opsets[1]
    before = opset_of(model)
    if before <= newest or graph_precision(model) == "int8":
        yield source, model
        return
    if missing := missing_package("onnxruntime", "ort"):
        raise ExportError(
            f"{where}: has opset {before}, and {edition} takes {newest} at most; it is converted with onnxruntime, and "
            f"{missing}"
        )
    converted = to_opset(model, newest, where=where)
    least_db = LEAST_DB if graph_precision(model) == "fp32" else LEAST_HALF_DB
    check_same(model, converted, _sample(io_specs(model)[0], profiles), where=where, least_db=least_db)
    with tempfile.TemporaryDirectory(prefix="edgestill-opset-") as folder:
        file = Path(folder) / source.name
        save_model(converted, file)
        yield file, converted


def _sample(inputs: tuple[IOSpec, ...], profiles: Mapping[str, Profile]) -> dict[str, np.ndarray]:
    """Normal values of fixed seed in each input's size, the best of its profile; integers are 0 and 1."""
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in inputs:
        shape = profiles[spec.name][1] if spec.name in profiles else tuple(int(size) for size in spec.shape)
        drawn = rng.standard_normal(shape) if spec.dtype.startswith("float") else rng.integers(0, 2, shape)
        feeds[spec.name] = np.asarray(drawn).astype(spec.dtype)
    return feeds
