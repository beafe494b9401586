import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporter_nets import INPUT_SHAPE, batches, export, file, net

from exporters import EXPORTERS, open_runner
from exporters.artifact import ExportError, file_sha256
from exporters.onnx_file import load_model, save_model
from exporters.to_onnx import export_onnx


def test_the_same_net_gives_the_same_bytes_and_no_trace_of_this_machine(tmp_path, capfd):
    first = export(tmp_path / "a" / "first.onnx")
    second = export(tmp_path / "b" / "second.onnx")
    assert capfd.readouterr() == ("", "")
    assert first.read_bytes() == second.read_bytes()
    for text in (str(tmp_path), str(Path(__file__).parent), str(Path.home()), sys.prefix, "exporter_nets"):
        assert text.encode() not in first.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["first.onnx"]


def test_another_process_gives_the_same_bytes(tmp_path):
    path = tmp_path / "other.onnx"
    code = f"import sys; sys.path[:0] = {sys.path!r}\nfrom exporter_nets import export\nfrom pathlib import Path\n"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code + f"export(Path({str(path)!r}))"], check=True, env=environment)
    assert file_sha256(path) == file_sha256(file("fp32"))


def test_the_graph_is_lean_and_says_what_it_is():
    model = onnx.load(str(file("fp32")))
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 6 and "BatchNormalization" not in operators
    assert [entry.version for entry in model.opset_import] == [20]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input", "logits"]


def test_the_module_is_left_as_it_was(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).train()
    module[1].eval()
    export_onnx(module, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8), opset=18, dynamic_batch=False, metadata={})
    assert [part.training for part in module.modules()] == [True, True, False]


@pytest.mark.parametrize("size", [1, 5])
def test_a_dynamic_batch_runs_at_other_sizes(size):
    images = np.concatenate(batches(3))[:size]
    with open_runner("onnxruntime", file("dynamic"), threads=1, shapes=(size, *INPUT_SHAPE[1:])) as runner:
        assert runner.outputs[0].shape == (size, 5)
        got = runner({"input": images})["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(got, net()(torch.from_numpy(images)).numpy(), rtol=0, atol=1e-5)


def test_the_table_names_the_exporter():
    assert EXPORTERS["onnx"] == "exporters.to_onnx:OnnxExporter"
    from exporters.to_onnx import OnnxExporter

    assert OnnxExporter().unavailable() is None


@pytest.mark.parametrize("opset", [13, 17])
def test_an_opset_that_torch_would_silently_raise_is_refused(tmp_path, opset):
    with pytest.raises(ExportError) as error:
        export(tmp_path / "m.onnx", opset=opset)
    assert str(error.value) == f"{tmp_path / 'm.onnx'}: opset {opset} cannot be exported; the oldest is 18"


def test_a_net_that_cannot_be_traced_is_one_line(tmp_path):
    class Branches(torch.nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    with pytest.raises(ExportError, match=r"m\.onnx: torch could not export the model \(\w+: .+\)$") as error:
        export_onnx(
            Branches(), tmp_path / "m.onnx", input_shape=(1, 3, 8, 8), opset=18, dynamic_batch=False, metadata={}
        )
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_graph_is_not_written_and_the_old_file_stays(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    model = load_model(file("fp32"))
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(ExportError, match=r"m\.onnx: the graph is not valid ONNX \(.*\); nothing was written$"):
        save_model(model, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]
