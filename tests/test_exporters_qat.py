"""Fake quantization by its formulas, and a trained Q/DQ graph that gives in its file what it gave in torch."""

import math

import numpy as np
import pytest
import torch
from exporter_nets import batches, file, net
from onnx import helper, numpy_helper
from torch import nn

from exporters import open_runner
from exporters.artifact import ExportError, read_metadata
from exporters.fake_quant import ActivationGrid, WeightGrid, half_up
from exporters.int8_forms import _up
from exporters.layer_names import layer_of
from exporters.onnx_file import load_model, save_model
from exporters.qat import agreement, export_trained, trainable, written
from exporters.tensorrt_check import check_graph, rules_of
from exporters.to_onnx import export_onnx

FORMS = ("portable", "cpu", "gpu")


def test_values_fall_on_the_grid_and_gradients_pass_inside_it_only():
    grid = ActivationGrid(0.5, 0, -128, 127)
    x = torch.tensor([[0.2, 0.3, -0.8, 100.0, -100.0]], requires_grad=True)
    found = grid(x)
    assert found.tolist() == [[0.0, 0.5, -1.0, 63.5, -64.0]]
    assert grid.levels(found).tolist() == [[0, 1, -2, 127, -128]]
    found.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1, 1, 1, 0, 0]]


def test_the_scale_learns_as_the_formula_says():
    # d x' / d scale: round(x / s) - x / s inside, the end of the grid outside; over s, for a relative step.
    grid = ActivationGrid(0.5, 0, -128, 127)
    x = torch.tensor([[0.2, 0.3, -0.8, 100.0, -100.0]])
    weights = torch.tensor([[0.01, 0.02, 0.03, 0.04, 0.05]])
    (grid(x) * weights).sum().backward()
    steps = [0 - 0.4, 1 - 0.6, -2 + 1.6, 127, -128]
    expected = sum(w * d for w, d in zip(weights[0].tolist(), steps, strict=True)) / 0.5 / math.sqrt(5 * 127)
    assert grid.logarithm.grad is not None and grid.logarithm.grad.item() == pytest.approx(expected, rel=1e-5)
    grid.logarithm.grad = None
    (grid(x) * 1e6 * weights).sum().backward()
    assert grid.logarithm.grad.item() == -1.0, "no step is longer than the rate"


def test_an_unsigned_grid_keeps_its_zero_point():
    grid = ActivationGrid(0.1, 10, 0, 255)
    found = grid(torch.tensor([[-2.0, -1.0, 0.0, 0.06, 30.0]]))
    assert found[0].tolist() == pytest.approx([-1.0, -1.0, 0.0, 0.1, 24.5])
    assert grid.levels(found).tolist() == [[0, 0, 10, 11, 255]]


def test_weights_take_the_scale_of_their_largest_magnitude():
    weight = torch.tensor([[1.27, -0.635], [0.0, 0.0], [1e-9, 0.0]])
    grid = WeightGrid(weight, axis=0, limit=127, floor=torch.tensor([0.0, 0.0, 1e-3]))
    levels, scales = grid.levels()
    assert scales.tolist() == pytest.approx([0.01, 1.0, 1e-3])
    assert levels.tolist() == [[127, -64], [0, 0], [0, 0]] and levels.dtype == torch.int8
    grid().sum().backward()
    assert grid.weight.grad is not None and grid.weight.grad.tolist() == [[1, 1]] * 3


def test_scales_of_fp16_are_those_that_the_gpu_form_rounds_to():
    scales = np.array([1e-9, 6e-8, 1e-6, 3.1e-5, 0.1, 0.25, 1 / 3, 100.1, 65504.0], np.float32)
    assert half_up(torch.from_numpy(scales)).tolist() == _up(scales).tolist()
    assert half_up(torch.tensor([0.0, 1e6])).tolist() == [0.0, 1e6], "no channel, and a layer that stays in fp32"
    grid = ActivationGrid(0.1, 0, -128, 127, fp16=True)
    grid(torch.tensor([[0.33]])).sum().backward()
    assert grid.scale.item() == _up(np.asarray(0.1, np.float32)) and grid.logarithm.grad


@pytest.fixture(scope="module", params=FORMS)
def taught(request, tmp_path_factory):
    """A graph after some steps of training towards other answers, and the file that was made of it."""
    ready = trainable(file("fp32"), batches(), form=request.param)
    before = {name: value.detach().clone() for name, value in ready.module.named_parameters()}
    optimizer = torch.optim.SGD([p for p in ready.module.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    images = torch.from_numpy(np.concatenate(batches()))
    target = torch.arange(len(images)) % 5
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(ready.module(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    path = tmp_path_factory.mktemp("qat") / "net.onnx"
    export_trained(ready, path, batches=batches(), metadata={"qat_epochs": "1"})
    return ready, path, losses, before


def test_training_moves_weights_biases_and_scales(taught):
    ready, _, losses, before = taught
    assert losses[-1] < 0.97 * losses[0]
    still = {name for name, value in ready.module.named_parameters() if torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in still} <= {"kept"}


def test_the_file_gives_the_whole_numbers_of_the_module(taught):
    ready, path, _, _ = taught
    found = agreement(ready, path, batches(seed=3))
    assert found.integers > 90_000 and found.equal > 0.9999 and found.most <= 1
    images = batches(1, seed=3)[0]
    with open_runner("onnxruntime", path, threads=1) as runner, torch.no_grad():
        got, expected = runner({"input": images})["logits"], ready.module(torch.from_numpy(images)).numpy()
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    assert found.sqnr_db is None or found.sqnr_db > 25
    other = agreement(ready, file(ready.form), batches())
    assert other.sqnr_db is not None and other.sqnr_db < 15, "the file that was not trained is another one"


def test_the_form_is_what_calibration_would_have_made(taught):
    ready, path, _, _ = taught
    plain, trained = load_model(file(ready.form)), load_model(path)
    assert [node.op_type for node in trained.graph.node] == [node.op_type for node in plain.graph.node]
    shapes = [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in plain.graph.initializer]
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in trained.graph.initializer] == shapes
    assert read_metadata(path)["form"] == ready.form and read_metadata(path)["qat_epochs"] == "1"
    if ready.form != "cpu":
        check_graph(trained, rules_of("tensorrt", "10.3"), where="trained")
        adds = [node for node in trained.graph.node if node.op_type == "Add"]
        makers = {name: node.op_type for node in trained.graph.node for name in node.output}
        assert adds and all(makers[name] == "DequantizeLinear" for node in adds for name in node.input)
        zeros = [numpy_helper.to_array(t) for t in trained.graph.initializer if t.name.endswith("zero_point")]
        assert zeros and not any(zero.any() for zero in zeros)


@pytest.mark.parametrize("form", [*FORMS, "trt86"])
def test_untrained_it_is_the_plain_file(form):
    ready = trainable(file("fp32"), batches(), form=form)
    plain = {tensor.name: numpy_helper.to_array(tensor) for tensor in load_model(file(form)).graph.initializer}
    for tensor in written(ready).graph.initializer:
        got, expected = numpy_helper.to_array(tensor), plain[tensor.name]
        if np.issubdtype(expected.dtype, np.integer):
            assert np.abs(got.astype(int) - expected.astype(int)).max(initial=0) <= 1, tensor.name
        else:
            rounded = expected.dtype == np.float16 and not tensor.name.endswith("_scale")  # a bias of the gpu form
            assert np.allclose(got, expected, rtol=1e-3 if rounded else 1e-5), tensor.name


def test_layers_kept_in_float_stay_in_float(tmp_path):
    ready = trainable(file("fp32"), batches(), form="cpu", keep_fp32=["blocks.1.conv1"])
    assert any("blocks.1.conv1" in name for name in ready.module.vector_of)
    path = tmp_path / "kept.onnx"
    export_trained(ready, path, batches=batches(), metadata={})
    found = agreement(ready, path, batches())
    assert found.equal == 1.0
    kept = next(node for node in load_model(path).graph.node if layer_of(node) == "blocks.1.conv1")
    assert read_metadata(path)["kept_fp32"] == kept.name


def test_a_tap_is_found_by_its_values_and_seen_by_hooks():
    ready = trainable(file("fp32"), batches(), form="portable", network=net(), taps=["blocks.0", "blocks.1.bn1"])
    seen = {}
    for path in ("blocks.0", "blocks.1.bn1"):
        ready.module.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: seen.__setitem__(path, tuple(output.shape))
        )
    ready.module(torch.from_numpy(np.concatenate(batches())))
    assert seen == {"blocks.0": (8, 8, 16, 16), "blocks.1.bn1": (8, 16, 8, 8)}
    with pytest.raises(ExportError) as error:
        trainable(file("fp32"), batches(), form="portable", network=net(), taps=["blocks.1.conv1"])
    assert str(error.value) == (
        f"{file('fp32')}: the output of module 'blocks.1.conv1' is no tensor of the exported graph, so its loss cannot "
        "be kept in this training; name the module around it, or leave the rung qat out"
    )


def test_an_unknown_operator_is_refused_by_its_node(tmp_path):
    model = load_model(file("fp32"))
    first = model.graph.node[0]
    model.graph.node.insert(1, helper.make_node("Selu", [first.output[0]], ["odd"], "strange"))
    for node in list(model.graph.node)[2:]:
        for place, name in enumerate(node.input):
            if name == first.output[0]:
                node.input[place] = "odd"
    save_model(model, tmp_path / "odd.onnx")
    with pytest.raises(ExportError) as error:
        trainable(tmp_path / "odd.onnx", batches(), form="portable")
    assert str(error.value) == (
        "Selu node 'strange' cannot be trained: it is not known to this quantization-aware training; leave the rung "
        "qat out"
    )


class Mixed(nn.Module):
    """What mobile networks are made of: depthwise, squeeze and excitation, hard activations, pooling, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 5, 1, 2, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + self.depthwise(x) * torch.nn.functional.hardsigmoid(self.gate(x))
        x = torch.cat([self.pool(x), nn.functional.avg_pool2d(self.up(x), 4)], 1)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.mark.parametrize("form", FORMS)
def test_a_mobile_network_of_static_batch_is_trained_in_any(form, tmp_path):
    torch.manual_seed(0)
    module = Mixed().eval()
    source = tmp_path / "mixed.onnx"
    export_onnx(module, source, input_shape=(1, 3, 16, 16), opset=18, dynamic_batch=False, metadata={})
    samples = [batch[:1] for batch in batches()]
    ready = trainable(source, samples, form=form)
    images = torch.from_numpy(np.concatenate(samples))
    with torch.no_grad():
        together = ready.module(images)
        alone = torch.cat([ready.module(image[None]) for image in images])
        assert torch.allclose(together, alone, atol=0.02)
    ready.module(images).square().sum().backward()
    assert all(p.grad is not None for p in ready.module.parameters() if p.requires_grad)
    export_trained(ready, tmp_path / "q.onnx", batches=samples, metadata={})
    found = agreement(ready, tmp_path / "q.onnx", samples)
    assert found.equal > 0.999 and found.most <= 1
