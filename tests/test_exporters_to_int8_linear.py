"""bitsandbytes' int8 linear layers as an artifact of torch: what is quantized, written and read again."""

import numpy as np
import pytest
import torch
from torch import nn

from exporters import EXPORTERS
from exporters.artifact import ExportError
from exporters.run_torch import TorchRunner
from exporters.to_int8_linear import (
    Int8LinearExporter,
    export_int8_linear,
    has_int8_linears,
    linear_names,
    load_int8_linears,
)

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed; pip install 'edgestill[train]'")
SHAPE = (4, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.hidden = nn.Linear(128, 64)
        self.attention = nn.MultiheadAttention(64, 2, batch_first=True)
        self.head = nn.Linear(64, 5)

    def forward(self, images):
        hidden = torch.relu(self.hidden(torch.relu(self.conv(images)).flatten(1)))[:, None]
        return self.head(self.attention(hidden, hidden, hidden)[0][:, 0])


def net():
    torch.manual_seed(0)
    return Net().eval()


def images():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def test_linear_layers_become_int8_and_nothing_else():
    assert linear_names(net()) == ("hidden", "head"), "the one inside attention is read by its weight alone"
    plain = net()
    with (
        TorchRunner(plain, threads=1, input_shape=SHAPE) as single,
        TorchRunner(plain, threads=1, input_shape=SHAPE, precision="int8-linear") as runner,
    ):
        assert runner.precision == "int8-linear" and runner.name == "torch"
        expected, got = single({"input": images()})["logits"], runner({"input": images()})["logits"]
        again = runner({"input": images()})["logits"]
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    np.testing.assert_array_equal(got, again)
    assert not has_int8_linears(plain), "the caller's module is not changed"


def test_the_file_gives_the_same_answers_and_is_smaller(tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "int8.safetensors"
    artifact = export_int8_linear(net(), path, metadata={"about": "test"})
    assert (artifact.kind, artifact.precision) == ("torch", "int8-linear") and "bitsandbytes" in artifact.made_by
    first = path.read_bytes()
    assert export_int8_linear(net(), path, metadata={"about": "test"}).path.read_bytes() == first
    state = load_file(path)
    assert {name for name, tensor in state.items() if tensor.dtype == torch.int8} == {"hidden.weight", "head.weight"}
    loaded = Net().eval()
    load_int8_linears(loaded, ("hidden", "head"), state)
    answers = []
    for module in (net(), loaded):
        with TorchRunner(module, threads=1, input_shape=SHAPE, precision="int8-linear") as runner:
            answers.append(runner({"input": images()})["logits"])
    np.testing.assert_array_equal(*answers)
    with pytest.raises(ExportError, match=r"int8-linear: 'conv\.bias' is missing from the file"):
        load_int8_linears(Net(), ("hidden", "head"), {k: v for k, v in state.items() if k != "conv.bias"})


def test_a_net_without_linear_layers_is_refused(tmp_path):
    with pytest.raises(ExportError) as error:
        export_int8_linear(nn.Conv2d(3, 4, 1), tmp_path / "int8.safetensors", metadata={})
    assert str(error.value) == "int8-linear: the model has no linear layer; leave this form out"
    assert not list(tmp_path.iterdir())


def test_without_bitsandbytes_the_reason_is_said(monkeypatch, tmp_path):
    assert EXPORTERS["int8-linear"].endswith("Int8LinearExporter") and Int8LinearExporter().unavailable() is None
    monkeypatch.setattr(
        "exporters.to_int8_linear.missing_package", lambda name, extra: f"{name} missing" if "bits" in name else None
    )
    assert Int8LinearExporter().unavailable() == "bitsandbytes missing"
    with pytest.raises(ExportError, match="int8 linear layers need bitsandbytes missing"):
        export_int8_linear(net(), tmp_path / "i.safetensors", metadata={})
