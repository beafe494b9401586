import numpy as np
import onnx
import pytest
from exporter_nets import feeds, file
from onnx import numpy_helper

from exporters import open_runner
from exporters.artifact import ExportError, file_sha256
from exporters.onnx_file import load_model, save_model
from exporters.parity import compare
from exporters.to_fp16 import convert_fp16


def test_fp16_keeps_fp32_inputs_and_outputs_and_halves_the_weights(tmp_path):
    artifact = convert_fp16(file("fp32"), tmp_path / "half.onnx")
    assert [spec.dtype for spec in (*artifact.inputs, *artifact.outputs)] == ["float32", "float32"]
    assert artifact.precision == "fp16" and "onnxconverter-common" in artifact.made_by
    floats = [tensor for tensor in onnx.load(str(artifact.path)).graph.initializer if tensor.data_type != 7]
    assert {tensor.data_type for tensor in floats} == {onnx.TensorProto.FLOAT16}
    assert artifact.sha256 == file_sha256(file("fp16"))


def test_fp16_is_close():
    with (
        open_runner("onnxruntime", file("fp32"), threads=1) as single,
        open_runner("onnxruntime", file("fp16"), threads=1) as half,
    ):
        parity = compare(single, half, feeds())
    assert half.precision == "fp16"
    assert parity.sqnr_db > 50 and parity.cosine > 0.9999 and parity.top1_flips == 0


def with_weight(path, value):
    """The fp32 file with one number of the classifier changed."""
    model = load_model(file("fp32"))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, "fc.weight"))
    save_model(model, path)
    return path


def test_a_weight_beyond_fp16_is_named_and_nothing_is_written(tmp_path):
    source = with_weight(tmp_path / "large.onnx", -123456.0)
    with pytest.raises(ExportError) as error:
        convert_fp16(source, tmp_path / "half.onnx")
    assert str(error.value) == (
        f"{source}: 'fc.weight' of node 'node_linear' (Gemm) holds 1.235e+05, beyond fp16's 65504; "
        "keep Gemm in fp32 (keep_fp32) or leave this model in fp32"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["large.onnx"]
    artifact = convert_fp16(source, tmp_path / "half.onnx", keep_fp32=("Gemm",))
    with open_runner("onnxruntime", artifact.path, threads=1) as runner:
        assert np.isfinite(runner(feeds(1)[0])["logits"]).all()


def test_large_weights_that_fit_are_not_clipped(tmp_path):
    artifact = convert_fp16(with_weight(tmp_path / "large.onnx", 49984.0), tmp_path / "half.onnx")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in load_model(artifact.path).graph.initializer}
    assert max(np.abs(array.astype(float)).max() for array in tensors.values() if array.dtype == np.float16) == 49984


@pytest.mark.parametrize("form", ["fp16", "portable"])
def test_a_file_that_is_not_fp32_is_refused(tmp_path, form):
    with pytest.raises(ExportError) as error:
        convert_fp16(file(form), tmp_path / "half.onnx")
    assert str(error.value) == f"{file(form)}: is {'fp16' if form == 'fp16' else 'int8'} already; give the fp32 file"
