"""pruned:MODEL: shares that are met, structures that follow from the name alone, weights that stay where they were."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import cli
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import RecipeError, UserError
from pipeline.models import build, check_name, parse_name, source_stamp, usual_side
from pipeline.models.checkpoint import ModelMeta, load_checkpoint, save_checkpoint
from pipeline.models.prune import prune
from profiles.flops import count_torch

NETS = {
    "cifar-resnet20": 32,
    "cifar-resnet20?shortcut=A": 32,
    "mlperf-resnet8": 32,
    "mobilenetv3-small-cifar": 32,
    "scene-cnn?blocks=6": 24,
    "torchvision:mobilenet_v2": 64,
    "torchvision:squeezenet1_1": 64,
    "vgg16-cifar?width=0.125": 32,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def widths(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def share(smaller: nn.Module, whole: nn.Module, size: tuple[int, int, int]) -> float:
    return count_torch(smaller, (1, *size)).macs / count_torch(whole, (1, *size)).macs


@pytest.mark.parametrize("name", NETS)
def test_half_of_the_macs_without_the_channels_of_least_weight(name: str) -> None:
    """The last channels of each layer are made dead; they are the ones that go, so the outputs stay as they were."""
    size = (3, NETS[name], NETS[name])
    torch.manual_seed(0)
    whole = build(name, num_classes=7)
    smaller = prune(whole, macs=0.5, input_size=size)
    assert 0.4 < share(smaller, whole, size) <= 0.5
    assert smaller.training and smaller(torch.zeros(2, *size)).shape == (2, 7)
    after = dict(smaller.named_modules())
    with torch.no_grad():
        for path, part in whole.named_modules():
            kill(part, after[path])
    before = {key: tensor.clone() for key, tensor in whole.state_dict().items()}
    kept = prune(whole, macs=0.5, input_size=size).eval()
    assert all(torch.equal(before[key], tensor) for key, tensor in whole.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in kept.parameters())
    x = torch.randn(3, *size)
    with torch.no_grad():
        want, got = whole.eval()(x), kept(x)
    assert want.std() > 0
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def kill(part: Any, smaller: Any) -> None:
    """Zero the weights of as many outputs and inputs as pruning removes, the last ones; the rest has random scales."""
    if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
        for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
            assert tensor is not None
            tensor.uniform_(0.5, 1.5)
            tensor[smaller.num_features :] = 1.0 if tensor is part.running_var else 0.0
    elif isinstance(part, nn.Conv2d | nn.Linear):
        part.weight[smaller.weight.shape[0] :] = 0
        part.weight[:, smaller.weight.shape[1] :] = 0
        if part.bias is not None:
            part.bias[smaller.weight.shape[0] :] = 0


def test_kept_channels_keep_their_values() -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))
    smaller = prune(whole, macs=0.5, input_size=(3, 8, 8))
    conv, linear, less, last = whole[0], whole[4], smaller[0], smaller[4]
    assert isinstance(conv, nn.Conv2d) and isinstance(linear, nn.Linear)
    strength = conv.weight.square().sum((1, 2, 3)) + conv.bias.square() + linear.weight.square().sum(0)
    stay = strength.argsort(descending=True)[:4].sort().values
    assert torch.equal(less.weight, conv.weight[stay]) and torch.equal(less.bias, conv.bias[stay])
    assert torch.equal(last.weight, linear.weight[:, stay]) and torch.equal(last.bias, linear.bias)


def test_the_head_is_what_runs_last() -> None:
    class Backwards(nn.Module):
        """Its head is registered first, and has fewer outputs than any other layer."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 4)
            self.body = nn.Conv2d(3, 16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).relu().mean((2, 3)))

    smaller = prune(Backwards(), macs=0.5, input_size=(3, 8, 8))
    assert smaller.head.out_features == 4 and smaller.body.out_channels == smaller.head.in_features == 8


@settings(max_examples=12, deadline=None)
@given(macs=st.floats(0.08, 0.99))
def test_no_ratio_comes_closer(macs: float) -> None:
    """Closed form for a chain of two convolutions of 8 and 16 channels and a head of 10, at 6x6 pixels."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 16, 3, padding=1, bias=False), Head(16))
    smaller = prune(net, macs=macs, input_size=(3, 6, 6))

    def cost(first: int, second: int) -> int:
        return 36 * 9 * (3 * first + first * second) + 10 * second

    pairs = {(int(8 * (1 - j / 16) + 1e-6), 16 - j) for j in range(1, 15)}  # 8 divides 16: one ratio, both counts
    best = max(cost(*pair) for pair in pairs if min(pair) > 0 and cost(*pair) <= macs * cost(8, 16))
    assert cost(smaller[0].out_channels, smaller[1].out_channels) == best


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize(
    "name", ["pruned:cifar-resnet20?macs=0.5&shortcut=A", "pruned:torchvision:squeezenet1_1?macs=0.3"]
)
def test_structure_follows_from_name_classes_and_size(name: str) -> None:
    shapes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        shapes.append(widths(build(name, num_classes=5, input_size=(3, 64, 64))))
    assert shapes[0] == shapes[1]


def test_the_structure_of_a_name_stays() -> None:
    """A golden value: a checkpoint holds the name alone, and has to load tomorrow."""
    module = build("pruned:cifar-resnet20?macs=0.4", num_classes=5, input_size=(3, 16, 16))
    channels = [part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert channels == [10] * 7 + [20] * 7 + [41] * 7


def test_a_checkpoint_is_rebuilt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = "pruned:cifar-resnet20?macs=0.5&shortcut=A"
    module = build(name, num_classes=3, input_size=(3, 16, 16)).eval()
    meta = ModelMeta(
        model=name, num_classes=3, class_names=("a", "b", "c"), input_size=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    save_checkpoint(tmp_path / "m.safetensors", module, meta)
    again, _ = load_checkpoint(tmp_path / "m.safetensors")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(module(x), again(x))
    found = cli("inspect", tmp_path / "m.safetensors", "--json").json
    assert found["macs"] == count_torch(module, (1, 3, 16, 16)).macs


def test_padded_shortcuts_keep_their_residual_sums() -> None:
    whole = build("cifar-resnet20?shortcut=A", num_classes=10)
    smaller = prune(whole, macs=0.5, input_size=(3, 32, 32))
    for path, part in whole.named_modules():
        if isinstance(part, nn.Conv2d):
            less = smaller.get_submodule(path)
            inner = path.endswith("conv1") and path != "conv1"
            assert (less.out_channels < part.out_channels) == inner, path


def test_frozen_parameters_stay_frozen() -> None:
    module = build("cifar-resnet20", num_classes=10).eval()
    module.get_submodule("layer1").requires_grad_(False)
    smaller = prune(module, macs=0.6, input_size=(3, 16, 16))
    frozen = {name for name, parameter in smaller.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in module.named_parameters() if name.startswith("layer1.")}
    assert not smaller.training


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pruned:cifar-resnet20", "macs = None; "),
        ("pruned:cifar-resnet20?macs=1", "macs = 1; "),
        ("pruned:cifar-resnet20?macs=nan", "macs = nan; "),
        ("pruned:cifar-resnet20?macs=half", "macs = 'half'; "),
    ],
)
def test_shares_that_are_none(text: str, message: str) -> None:
    line = f"model {text!r}: {message}expected the share of multiply-accumulates to keep, between 0 and 1, "
    line += "such as macs=0.5"
    with pytest.raises(RecipeError) as caught:
        check_name(text, where="student.model")
    assert str(caught.value) == f"student.model: {line}"
    with pytest.raises(RecipeError) as caught:
        build(text, input_size=(3, 32, 32))
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pruned:cifar-resnet57?macs=0.5", "unknown model 'cifar-resnet57'; did you mean 'cifar-resnet56'?"),
        ("pruned:torchvision:resnet19?macs=0.5", "torchvision has no classifier 'resnet19'; did you mean 'resnet18'?"),
        ("pruned:mlperf-resnet8?macs=0.5&width=2", "model 'mlperf-resnet8' has no option 'width'; it takes none"),
        (
            "pruned:pruned:cifar-resnet20?macs=0.5",
            (
                "model 'pruned:pruned:cifar-resnet20?macs=0.5': write one network after 'pruned:', "
                "such as pruned:cifar-resnet56?macs=0.5"
            ),
        ),
    ],
)
def test_what_is_pruned_is_checked_too(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_name(text, where="student.model")
    assert str(caught.value) == f"student.model: {message}"


def test_names_of_pruned_models() -> None:
    name = parse_name("pruned:torchvision:mobilenet_v2?macs=0.5&width_mult=0.75")
    assert (name.source, str(name.unpruned)) == ("pruned", "torchvision:mobilenet_v2?width_mult=0.75")
    assert name.unpruned.unpruned == name.unpruned and name.unpruned.source == "torchvision"
    assert str(parse_name("a?b=True&c=1e-3")) == "a?b=true&c=0.001"
    assert source_stamp("pruned:mlperf-resnet8?macs=0.5") == {}
    assert [
        usual_side(text) for text in ("pruned:scene-cnn?macs=0.5", "pruned:torchvision:vgg11?macs=0.5", "vgg16-cifar")
    ] == [
        150,
        224,
        32,
    ]


def test_a_pruned_model_needs_the_size_of_images() -> None:
    with pytest.raises(UserError) as caught:
        build("pruned:mlperf-resnet8?macs=0.5", num_classes=10)
    assert str(caught.value) == (
        "model 'pruned:mlperf-resnet8?macs=0.5': what pruning leaves depends on the size of images; give input_size"
    )


def test_a_share_that_cannot_be_reached() -> None:
    with pytest.raises(UserError) as caught:
        build("pruned:cifar-resnet20?macs=0.01&shortcut=A", num_classes=10, input_size=(3, 32, 32))
    text = str(caught.value)
    assert text.startswith(
        "model 'pruned:cifar-resnet20?macs=0.01&shortcut=A': macs = 0.01 is below what pruning reaches"
    )
    least = float(text.removesuffix(" or more").rpartition(" ")[2])
    build(f"pruned:cifar-resnet20?macs={least}&shortcut=A", num_classes=10, input_size=(3, 32, 32))


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        (
            "torchvision:vit_b_32",
            (
                "computes outside of plain convolutions and linear layers, as attention does; its channels cannot "
                "be pruned; prune a convolutional network"
            ),
        ),
        ("torchvision:shufflenet_v2_x0_5", "); prune a plain convolutional net"),
    ],
)
def test_networks_that_cannot_be_pruned(name: str, ending: str) -> None:
    with torch.device("meta"):
        module = build(name, num_classes=10)
    module = module.to_empty(device="cpu")
    with pytest.raises(UserError) as caught:
        prune(module, macs=0.5, input_size=(3, 224, 224), name=f"model {name!r}")
    text = str(caught.value)
    assert text.startswith(f"model {name!r}: ") and text.endswith(ending) and "\n" not in text


def test_a_net_without_channels_to_remove() -> None:
    with pytest.raises(UserError) as caught:
        prune(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), macs=0.5, input_size=(3, 2, 2), name="model 'm'")
    assert str(caught.value) == "model 'm': has no channels that can be removed; prune a convolutional network"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UserError) as caught:
        build("pruned:cifar-resnet20?macs=0.123", num_classes=10, input_size=(3, 8, 8))
    assert str(caught.value) == ("pruned models need torch-pruning, which is missing; pip install 'edgestill[train]'")


def test_inspect_counts_a_pruned_model() -> None:
    whole = cli("inspect", "cifar-resnet20", "--json").json["macs"]
    found = cli("inspect", "pruned:cifar-resnet20?macs=0.25", "--json").json
    assert 0.2 * whole < found["macs"] <= 0.25 * whole and found["inputs"][0]["shape"] == [1, 3, 32, 32]
