"""OpenVINO's own files, plain and quantized by NNCF: read without OpenVINO, bound to their weights, no telemetry."""

import subprocess
import sys

import numpy as np
import pytest
from exporter_nets import INPUT_SHAPE, PREPROCESSING, batches, feeds, file

from exporters import EXPORTERS, open_runner
from exporters.artifact import ExportError, IOSpec, Preprocessing, input_specs, read_metadata
from exporters.openvino_ir import inputs_of, read_properties, weights_of
from exporters.parity import compare
from exporters.to_openvino import PRESETS, NncfExporter, OpenVinoExporter, convert_ir, quantize_nncf

pytest.importorskip("openvino", reason="openvino is not installed; pip install 'edgestill[openvino]'")
needs_nncf = pytest.mark.skipif(NncfExporter().unavailable() is not None, reason=str(NncfExporter().unavailable()))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return convert_ir(file("fp32"), tmp_path_factory.mktemp("ir") / "plain.xml")


@pytest.fixture(scope="module", params=PRESETS)
def int8(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("nncf") / f"{request.param}.xml"
    return quantize_nncf(file("fp32"), path, form=request.param, batches=batches())


def test_ir_carries_what_the_onnx_file_carried_and_is_read_without_openvino(plain):
    assert (plain.kind, plain.precision) == ("openvino", "fp32") and "openvino" in plain.made_by
    assert (
        input_specs(plain.path) == inputs_of(plain.path) == (IOSpec(name="input", dtype="float32", shape=INPUT_SHAPE),)
    )
    assert Preprocessing.of_file(plain.path) == PREPROCESSING
    assert read_metadata(plain.path)["model"] == "tiny"


def test_ir_computes_what_the_onnx_file_does(plain):
    with (
        open_runner("openvino", file("fp32"), threads=1) as reference,
        open_runner("openvino", plain.path, threads=1) as candidate,
    ):
        assert candidate.precision == "fp32" and candidate.versions["inference_precision"] == "f32"
        assert compare(reference, candidate, feeds()).sqnr_db > 100


def test_weights_that_are_not_its_own_are_refused(plain, tmp_path):
    copy = tmp_path / "copy.xml"
    copy.write_bytes(plain.path.read_bytes())
    with pytest.raises(ExportError) as error, open_runner("openvino", copy, threads=1):
        pass
    assert (
        str(error.value)
        == f"{tmp_path / 'copy.bin'}: no such file; copy.xml cannot be opened without it: keep both together"
    )
    weights = bytearray(weights_of(plain.path).read_bytes())
    weights[100] ^= 1
    weights_of(copy).write_bytes(weights)
    with pytest.raises(ExportError) as error, open_runner("openvino", copy, threads=1):
        pass
    assert str(error.value) == f"{weights_of(copy)}: is not the file that copy.xml was written with; copy both again"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"no xml", "not a file of OpenVINO; it cannot be parsed"),
        (b"<html/>", "not a file of OpenVINO; it begins with <html>"),
    ],
)
def test_what_is_no_ir_is_one_line(tmp_path, text, message):
    path = tmp_path / "odd.xml"
    path.write_bytes(text)
    with pytest.raises(ExportError, match=message):
        read_properties(path)
    with pytest.raises(ExportError, match="no such file"):
        read_properties(tmp_path / "none.xml")


@needs_nncf
def test_nncf_makes_int8_that_openvino_runs(int8):
    assert (int8.kind, int8.precision) == ("openvino", "int8") and {"openvino", "nncf"} <= set(int8.made_by)
    found = read_metadata(int8.path)
    assert (found["precision"], found["form"], found["calibration_samples"]) == ("int8", int8.path.stem, "8")
    assert found["calibration_sha256"] == read_metadata(file("portable"))["calibration_sha256"]
    assert Preprocessing.of_file(int8.path) == PREPROCESSING
    with (
        open_runner("openvino", file("fp32"), threads=1) as reference,
        open_runner("openvino", int8.path, threads=1) as candidate,
    ):
        assert candidate.precision == "int8" and candidate.versions["inference_precision"] == "f32"
        assert compare(reference, candidate, feeds()).sqnr_db > 20
        layers = candidate.profile_layers(feeds(1)[0], 1)
    assert any("_I8" in operator for _, operator, _ in layers), "convolutions run in int8"


@needs_nncf
def test_only_the_mixed_form_shifts_its_ranges(int8):
    """The network's input has both signs and is not centred: symmetric ranges go from -128 s to 127 s nevertheless."""
    import openvino

    model = openvino.Core().read_model(str(int8.path))
    (first,) = (
        target.get_node()
        for target in model.inputs[0].get_target_inputs()
        if target.get_node().get_type_name() == "FakeQuantize"
    )
    low, high = (float(first.input_value(i).get_node().data.ravel()[0]) for i in (1, 2))
    assert low < 0 < high
    assert (-low / high == pytest.approx(128 / 127, rel=1e-4)) == (int8.path.stem == "nncf")


@needs_nncf
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no calibration samples; give some from the training split"),
        ([np.zeros(INPUT_SHAPE, np.float32)] * 2, "all 4 calibration samples are the same"),
        (iter(batches()), "NNCF reads the calibration samples several times; give a list"),
    ],
)
def test_samples_that_nncf_cannot_use_are_refused(tmp_path, given, message):
    with pytest.raises(ExportError, match=message):
        quantize_nncf(file("fp32"), tmp_path / "int8.xml", batches=given)
    assert not list(tmp_path.iterdir())


@needs_nncf
def test_only_fp32_files_are_quantized(tmp_path):
    with pytest.raises(ExportError, match="is int8 already; quantize the fp32 file"):
        quantize_nncf(file("portable"), tmp_path / "int8.xml", batches=batches())
    with pytest.raises(ExportError, match=r"IR is written to a file that ends in \.xml"):
        convert_ir(file("fp32"), tmp_path / "int8.onnx")


def test_without_nncf_the_reason_is_said(monkeypatch, tmp_path):
    real = __import__("importlib.util", fromlist=["find_spec"]).find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "nncf" else real(name, *rest))
    assert NncfExporter().unavailable() == "nncf is not installed; pip install 'edgestill[nncf]'"
    assert OpenVinoExporter().unavailable() is None
    with pytest.raises(ExportError) as error:
        quantize_nncf(file("fp32"), tmp_path / "int8.xml", batches=batches())
    assert str(error.value) == (
        f"{file('fp32')}: int8 by NNCF needs nncf is not installed; pip install 'edgestill[nncf]'"
    )


@needs_nncf
def test_nncf_sends_nothing():
    code = "import sys; from exporters.to_openvino import _import_nncf; nncf = _import_nncf()\n"
    code += "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_exporters_are_in_the_table():
    assert EXPORTERS["openvino"].endswith("OpenVinoExporter") and EXPORTERS["nncf"].endswith("NncfExporter")
