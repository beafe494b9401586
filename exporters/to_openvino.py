"""ONNX -> OpenVINO's IR (.xml and .bin), as it is or quantized to int8 by NNCF: min-max ranges, fast bias correction.

NNCF's default range estimator cost 1.2 to 1.5 points on a depthwise net where min-max cost none; so min-max it is. Its
symmetric activations were 5 to 9 % faster on residual nets than its mixed ones, which hold networks better whose
activations have both signs (swish): each is a form of its own. Its files are for OpenVINO alone: no other runtime reads
IR, and a device that has only ONNX Runtime races the ONNX forms.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporters.artifact import PREFIX, Artifact, ExportError, file_sha256, installed_versions
from exporters.base import missing_package
from exporters.calibration_samples import CalibrationSamples
from exporters.onnx_file import first_line, graph_precision, io_specs, load_model, replace_bytes
from exporters.openvino_ir import KEY, SUFFIX, WEIGHTS_SHA256, weights_of

PRESETS = {"nncf": "PERFORMANCE", "nncf-mixed": "MIXED"}  # form -> NNCF's name for how activations are quantized


class OpenVinoExporter:
    """The exporter named "openvino" in `exporters.EXPORTERS`: ONNX to IR, nothing changed."""

    name = "openvino"

    def unavailable(self) -> str | None:
        return missing_package("openvino", "openvino")

    @property
    def export(self) -> Callable[..., Artifact]:
        return convert_ir


class NncfExporter(OpenVinoExporter):
    """The exporter named "nncf": ONNX fp32 to an int8 IR."""

    name = "nncf"

    def unavailable(self) -> str | None:
        return missing_package("openvino", "openvino") or missing_package("nncf", "nncf")

    @property
    def export(self) -> Callable[..., Artifact]:
        return quantize_nncf


def convert_ir(source: Path | str, path: Path | str) -> Artifact:
    """Write the ONNX file `source` as IR at `path` (.xml) with its weights beside it, in the precision that it has."""
    from exporters.run_openvino import _import_openvino

    if reason := OpenVinoExporter().unavailable():
        raise ExportError(f"{source}: IR needs {reason}")
    model = load_model(source)
    core = _import_openvino().Core()
    with _explained(source, "openvino cannot read it"):
        read = core.read_model(str(source))
    return _save(read, model, Path(path), precision=graph_precision(model), facts={}, tools=("openvino",))


def quantize_nncf(
    source: Path | str,
    path: Path | str,
    *,
    form: str = "nncf",
    batches: Iterable[np.ndarray],
    say: Callable[[str], object] = lambda line: None,
) -> Artifact:
    """Write the fp32 ONNX file `source` as int8 IR at `path` (.xml), quantized by NNCF on `batches`; `form` is one of
    `PRESETS`.

    `batches` yields arrays of the model's one input and is read several times, so it must start again each time. NNCF's
    telemetry is off. Missing packages, bad samples and models that NNCF cannot take are an `ExportError`.
    """
    from exporters.run_openvino import _import_openvino

    if reason := NncfExporter().unavailable():
        raise ExportError(f"{source}: int8 by NNCF needs {reason}")
    model = load_model(source)
    if (found := graph_precision(model)) != "fp32":
        raise ExportError(f"{source}: is {found} already; quantize the fp32 file")
    inputs, _ = io_specs(model)
    if len(inputs) != 1 or inputs[0].dtype != "float32":
        raise ExportError(
            f"{source}: calibration needs a model with one float32 input; it has {', '.join(map(str, inputs))}"
        )
    samples = CalibrationSamples(batches, inputs[0], where=str(source))
    sizes = [feeds[inputs[0].name].nbytes for feeds in samples]
    samples.check()
    if iter(batches) is batches:
        raise ExportError(
            f"{source}: NNCF reads the calibration samples several times; give a list, or a stream that starts again"
        )
    core = _import_openvino().Core()
    with _explained(source, "openvino cannot read it"):
        read = core.read_model(str(source))
    with _explained(source, "NNCF could not quantize it"):
        quantized = _quantized(read, _Feeds(batches, inputs[0].name), len(sizes), PRESETS[form])
    say(
        f"nncf: min-max on {samples.count} samples; memory: {max(sizes):,} bytes of input, however many samples, and "
        "what NNCF holds of the activations, which it does not tell"
    )
    facts = {"calibration_sha256": samples.sha256, "calibration_samples": str(samples.count), "form": form}
    return _save(quantized, model, Path(path), precision="int8", facts=facts, tools=("openvino", "nncf"))


class _Feeds:
    """The batches as NNCF wants them, from the beginning at each reading."""

    def __init__(self, batches: Iterable[np.ndarray], name: str) -> None:
        self.batches, self.name = batches, name

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return ({self.name: batch} for batch in self.batches)


def _quantized(model: Any, feeds: _Feeds, count: int, preset: str) -> Any:
    nncf = _import_nncf()
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    minmax = RangeEstimatorParametersSet.MINMAX
    with _silent():
        return nncf.quantize(
            model,
            nncf.Dataset(feeds),
            preset=nncf.QuantizationPreset[preset],
            target_device=nncf.TargetDevice.CPU,
            subset_size=count,
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=minmax, weights_range_estimator_params=minmax
            ),
        )


def _import_nncf() -> Any:
    """Import nncf without its telemetry, which goes by the same package as OpenVINO's; a stub takes its place."""
    if "nncf" not in sys.modules:
        before = sys.modules.get("openvino_telemetry")
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            with _silent():
                import nncf
        finally:
            if before is None:
                del sys.modules["openvino_telemetry"]
            else:
                sys.modules["openvino_telemetry"] = before
        nncf.set_log_level(logging.ERROR)
    import nncf

    return nncf


def _save(
    model: Any, source: Any, path: Path, *, precision: Any, facts: Mapping[str, str], tools: tuple[str, ...]
) -> Artifact:
    """Write both files, weights first, and the ONNX file's metadata with them."""
    import openvino

    if path.suffix != SUFFIX:
        raise ExportError(f"{path}: IR is written to a file that ends in {SUFFIX}")
    carried = {
        prop.key.removeprefix(PREFIX): prop.value for prop in source.metadata_props if prop.key.startswith(PREFIX)
    }
    versions = installed_versions(*tools)
    properties = {**carried, "precision": precision, **facts}
    with tempfile.TemporaryDirectory(prefix="edgestill-ir-") as folder:
        written = Path(folder) / path.name
        # What NNCF notes of itself holds paths and settings of this machine; the tools stand in the versions.
        for key, value in properties.items():
            model.set_rt_info(value, [KEY, key])
        openvino.save_model(model, str(written), compress_to_fp16=False)
        model.set_rt_info(file_sha256(weights_of(written)), [KEY, WEIGHTS_SHA256])
        openvino.save_model(model, str(written), compress_to_fp16=False)
        replace_bytes(weights_of(path), weights_of(written).read_bytes())
        replace_bytes(path, written.read_bytes())
    inputs, outputs = io_specs(source)
    return Artifact.of_file(
        path, kind="openvino", precision=precision, inputs=inputs, outputs=outputs, made_by=versions
    )


@contextlib.contextmanager
def _explained(source: Path | str, what: str) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{source}: {what} ({type(error).__name__}: {first_line(error)})") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Progress bars, advice and deprecations of NNCF's own imports; errors still come as exceptions."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
