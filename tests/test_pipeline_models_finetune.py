"""Fine-tuning: the head of a network, and parts of it that stand still."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.finetune import freeze, head_parameters, hold_frozen

NARROW = "cifar-resnet20?width=0.25"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


HEADS = {
    "cifar-resnet20": {"linear.weight", "linear.bias"},
    "scene-cnn?blocks=4": {"fc2.weight", "fc2.bias"},
    "scene-cnn": {"fc3.weight", "fc3.bias"},
    "vgg11-bn-cifar?width=0.1": {"classifier.6.weight", "classifier.6.bias"},
    "mobilenetv3-small-cifar": {"classifier.1.weight", "classifier.1.bias"},
    "densenet121-cifar?width=0.1": {"classifier.weight", "classifier.bias"},
    "torchvision:squeezenet1_1": {"classifier.1.weight", "classifier.1.bias"},
    "torchvision:swin_t": {"head.weight", "head.bias"},
    "torchvision:vit_b_32": {"heads.head.weight", "heads.head.bias"},
    "torchvision:convnext_tiny": {"classifier.2.weight", "classifier.2.bias"},
    "torchvision:efficientnet_b0": {"classifier.1.weight", "classifier.1.bias"},
    "torchvision:googlenet": {"fc.weight", "fc.bias"},
}


@pytest.mark.parametrize("name", HEADS)
def test_head_parameters(name: str) -> None:
    with torch.device("meta"):
        module = build(name, num_classes=7)
    assert set(head_parameters(module)) == HEADS[name]
    assert all(module.get_parameter(parameter).shape[0] == 7 for parameter in HEADS[name])


def test_head_of_a_bare_layer_and_of_none() -> None:
    assert head_parameters(nn.Linear(2, 3)) == ["weight", "bias"]
    assert head_parameters(nn.Sequential(nn.ReLU())) == []


def test_freeze_and_hold() -> None:
    module = build(NARROW)
    names = freeze(module, ["conv1", "bn1", "layer1"], where="distill.freeze")
    assert names == [name for name, _ in module.named_parameters() if name.startswith(("conv1.", "bn1.", "layer1."))]
    assert all(parameter.requires_grad == (name not in names) for name, parameter in module.named_parameters())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module.train()
    hold_frozen(module)
    module(torch.randn(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    still = {name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))}
    assert {name for name, tensor in module.state_dict().items() if torch.equal(tensor, before[name])} == still
    module.train()
    assert module.get_submodule("bn1").training  # which is why it is called each time


def test_batch_norm_without_parameters_goes_with_the_module_around_it() -> None:
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)),
    )
    freeze(module, ["0"])
    hold_frozen(module.train())
    assert [part.training for part in module.modules() if isinstance(part, nn.BatchNorm2d)] == [False, True]
    norm = nn.BatchNorm2d(4).requires_grad_(False)
    hold_frozen(norm)
    assert not norm.training


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["conv1", "layer9"], "the network has no 'layer9'; did you mean 'layer3'?"),
        (["layer1.0.cnv1"], "the network has no 'layer1.0.cnv1'; did you mean 'layer1.0.conv1'?"),
        (["backbone"], "the network has no 'backbone'; it begins with conv1, bn1, layer1, layer2, layer3, linear"),
        (
            ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"],
            "conv1, bn1, layer1, layer2, layer3, linear leave nothing to train; freeze fewer",
        ),
    ],
)
def test_what_cannot_be_frozen(paths: list[str], message: str) -> None:
    module = build(NARROW)
    with pytest.raises(UserError) as caught:
        freeze(module, paths, where="distill.freeze")
    assert str(caught.value) == f"distill.freeze: {message}"
    assert all(parameter.requires_grad for parameter in module.parameters())
