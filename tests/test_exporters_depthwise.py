"""Bias correction of depthwise convolutions, whose few weights a channel are hit hardest by the mean error."""

import numpy as np
import pytest
import torch
from exporter_nets import batches
from torch import nn

from exporters.bias_correction import cut
from exporters.calibrate import open_session
from exporters.onnx_file import load_model
from exporters.quantize_onnx import quantize_int8
from exporters.to_onnx import export_onnx


@pytest.fixture(scope="module")
def depthwise(tmp_path_factory):
    """A 1x1, a depthwise and a 1x1 convolution; the channels of the second differ by a factor of 1,000."""
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish()),
        *(nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ).eval()
    with torch.no_grad():
        module[2].weight *= torch.logspace(-2, 1, 8)[:, None, None, None]
    path = tmp_path_factory.mktemp("depthwise") / "net.onnx"
    export_onnx(module, path, input_shape=(2, 3, 16, 16), opset=18, dynamic_batch=False, metadata={})
    return path


def means(model, name):
    """The mean of each output channel of the node `name` over the calibration images."""
    node = next(node for node in model.graph.node if node.name == name)
    tensor = node.output[0]
    session = open_session(cut(model, tensor), [tensor], where="test")
    found = [session.run([tensor], {model.graph.input[0].name: batch})[0] for batch in batches()]
    return np.concatenate(found).mean(axis=(0, 2, 3), dtype=np.float64)


@pytest.mark.parametrize("form", ["portable", "cpu"])
def test_the_mean_of_each_depthwise_channel_comes_back(depthwise, tmp_path, form):
    wanted = load_model(depthwise)
    name = next(node.name for node in wanted.graph.node if any(a.name == "group" and a.i == 8 for a in node.attribute))
    errors = []
    for corrected in (False, True):
        path = tmp_path / f"{corrected}.onnx"
        quantize_int8(depthwise, path, form=form, batches=batches(), bias_correction=corrected)
        errors.append(np.abs(means(load_model(path), name) - means(wanted, name)).max())
    assert errors[1] < 0.1 * errors[0]
