"""Files in an operator set that an edition does not know yet: converted for TensorRT 8.6, or refused with the node."""

import onnx
import pytest
from cli_runner import cli
from cuda_fakes import FakeDriver
from exporter_nets import file
from tensorrt_fakes import build, fake_trt

from exporters.artifact import ExportError, file_sha256
from exporters.onnx_file import load_model, save_model
from exporters.opset import opset_of
from exporters.tensorrt_api import probe
from exporters.tensorrt_options import BuildOptions
from exporters.to_tensorrt import build_engine


@pytest.fixture
def gpu(monkeypatch):
    driver = FakeDriver()
    monkeypatch.setattr("exporters.cuda_driver.load_driver", lambda: driver)
    return driver


@pytest.mark.parametrize(("form", "inspector"), [("fp32", "FP32"), ("fp16", "Half"), ("dynamic", "FP32")])
def test_what_we_export_is_converted_for_the_oldest_edition(form, inspector, tmp_path, gpu):
    options = BuildOptions(shapes=(2, 3, 16, 16) if form == "dynamic" else None)
    _, facts, network, _ = build("8.6.2", form, tmp_path, options=options, inspector=inspector)
    assert facts["opset"] == {"file": 20, "built": 17} and facts["onnx"]["sha256"] == file_sha256(file(form))
    read = onnx.load_from_string(network.data)
    assert opset_of(read) == 17 and {each.op_type for each in read.graph.node} >= {"Conv", "Gemm", "ReduceMean"}
    assert cli("inspect", tmp_path / "m.engine").out.count("opset 20, built in 17") == 1
    _, facts, *_ = build("10.3.0", form, tmp_path, options=options)
    assert facts["opset"] == {"file": 20, "built": 20}


def test_what_cannot_be_converted_is_refused_with_its_node(tmp_path, gpu, monkeypatch):
    old = probe("tensorrt", fake_trt("8.6.2"))
    model = load_model(file("fp32"))
    model.graph.node.add(op_type="Gelu", name="smooth", input=["logits"], output=["smoothed"])
    save_model(model, tmp_path / "gelu.onnx")
    with pytest.raises(ExportError) as error:
        build_engine(tmp_path / "gelu.onnx", tmp_path / "m.engine", edition=old)
    told = str(error.value)
    assert told.startswith(f"{tmp_path / 'gelu.onnx'}: node 'smooth' (Gelu): opset 20 cannot be converted to 17 (")
    assert told.endswith("; give a file in opset 17, or a model without such a node") and "\n" not in told
    with pytest.raises(ExportError, match=r"has opset 20; tensorrt 8\.6\.2 takes 7 to 17; give it in opset 17"):
        build_engine(file("gpu"), tmp_path / "m.engine", edition=old)  # its int8 form is another
    monkeypatch.setattr("exporters.tensorrt_opset.missing_package", lambda *names: "onnxruntime is not installed")
    with pytest.raises(ExportError) as error:
        build_engine(file("fp32"), tmp_path / "m.engine", edition=old)
    assert str(error.value) == (
        f"{file('fp32')}: has opset 20, and tensorrt 8.6.2 takes 17 at most; it is converted with onnxruntime, and "
        "onnxruntime is not installed"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["gelu.onnx"]
