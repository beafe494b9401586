"""torch -> ONNX fp32: `torch.onnx.export` through torch.export (dynamo), one file, the same bytes every time."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.artifact import Artifact, ExportError, installed_versions
from exporters.base import INPUT_NAME, OUTPUT_NAME, missing_package
from exporters.onnx_file import add_versions, first_line, onnx_artifact, save_model, set_metadata

if TYPE_CHECKING:
    from torch import nn

# Asked for less, torch's exporter silently writes 18.
OLDEST_OPSET = 18


class OnnxExporter:
    """The exporter named "onnx" in `exporters.EXPORTERS`."""

    name = "onnx"

    def unavailable(self) -> str | None:
        return missing_package("torch", "train") or missing_package("onnxscript", "train")

    def export(
        self,
        module: nn.Module,
        path: Path | str,
        *,
        input_shape: tuple[int, ...],
        opset: int = OLDEST_OPSET,
        dynamic_batch: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Artifact:
        return export_onnx(
            module, path, input_shape=input_shape, opset=opset, dynamic_batch=dynamic_batch, metadata=metadata or {}
        )


def export_onnx(
    module: nn.Module,
    path: Path | str,
    *,
    input_shape: tuple[int, ...],
    opset: int,
    dynamic_batch: bool,
    metadata: Mapping[str, str],
) -> Artifact:
    """Write `module`, a net from one tensor to one tensor, as ONNX fp32 in evaluation mode. The module is not changed.

    `input_shape` is (N, C, H, W); with `dynamic_batch` N becomes the symbolic size "batch". The input is named "input"
    and the output "logits". BatchNorm is folded by the exporter. `metadata` goes into the file, its keys prefixed with
    "edgestill."; precision and tool versions are added. The file has no side data, no stack traces and no local paths.
    """
    import torch

    if opset < OLDEST_OPSET:
        raise ExportError(f"{path}: opset {opset} cannot be exported; the oldest is {OLDEST_OPSET}")
    # A copy, because evaluation mode, device and type are the caller's to choose and belong in no exported byte.
    subject = copy.deepcopy(module).cpu().float().eval()
    batch = {0: torch.export.Dim("batch")}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                subject,
                (torch.zeros(input_shape),),
                None,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=(batch,) if dynamic_batch else None,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"{path}: torch could not export the model ({_cause(error)})") from error
    assert program is not None
    model = program.model_proto
    written = {entry.domain: entry.version for entry in model.opset_import}[""]
    if written != opset:
        raise ExportError(f"{path}: asked for opset {opset}, but this torch writes opset {written}; ask for that one")
    set_metadata(model, {**metadata, "precision": "fp32"})
    made_by = add_versions(model, installed_versions("torch", "onnx", "onnxscript"))
    save_model(model, path)
    return onnx_artifact(model, path, precision="fp32", made_by=made_by)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns about its own internals; errors still come as exceptions."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _cause(error: BaseException) -> str:
    """The innermost reason; the exporter wraps it in pages about how to file a report."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"
