"""Models by name: parsing, checks without torch, published sizes, torchvision's."""

import inspect
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import RecipeError, UserError
from pipeline.models import MODELS, OPTIONS, ModelName, build, check_name, parse_name
from pipeline.models.cifar_resnet import PaddedShortcut
from pipeline.models.forward_check import check_forward
from pipeline.models.torchvision_names import torchvision_names
from pipeline.registry import load
from profiles.flops import count_torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_parse_name_types_its_arguments() -> None:
    name = parse_name("cifar-resnet56?shortcut=A&width=0.5&n=3&on=true&off=False")
    assert name == ModelName(
        family="cifar-resnet56", args={"shortcut": "A", "width": 0.5, "n": 3, "on": True, "off": False}
    )
    assert isinstance(name.args["n"], int)
    assert [parse_name(text).source for text in ("a", "torchvision:a", "a.b:c?d=e")] == [
        "family",
        "torchvision",
        "module",
    ]


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    try:
        check_name(text, where="student.model")
    except RecipeError as error:
        assert str(error).startswith("student.model: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "model '' has no name; write one such as 'cifar-resnet20' or 'torchvision:resnet18'"),
        ("cifar-resnet20?", "model 'cifar-resnet20?': '' after '?' is not of the form key=value, joined by '&'"),
        ("a?b", "model 'a?b': 'b' after '?' is not of the form key=value, joined by '&'"),
        ("a?b=1&b=2", "model 'a?b=1&b=2': 'b' is given twice"),
        ("cifar-resnet55", "unknown model 'cifar-resnet55'; did you mean 'cifar-resnet56'?"),
        ("cifar-resnet56?widht=2", "model 'cifar-resnet56' has no option 'widht'; did you mean 'width'?"),
        ("cifar-resnet56?groups=2", "model 'cifar-resnet56' has no option 'groups'; known: shortcut, width"),
        ("mlperf-resnet8?width=2", "model 'mlperf-resnet8' has no option 'width'; it takes none"),
        (
            "cifar-resnet20?shortcut=C",
            "model 'cifar-resnet20': shortcut = 'C'; write A (padded) or B (1x1 convolution)",
        ),
        ("cifar-resnet20?width=0", "model 'cifar-resnet20': width = 0; expected a number in (0, 16]"),
        ("cifar-resnet20?width=nan", "model 'cifar-resnet20': width = nan; expected a number in (0, 16]"),
        ("cifar-resnet20?width=true", "model 'cifar-resnet20': width = True; expected a number in (0, 16]"),
        ("scene-cnn?blocks=5", "model 'scene-cnn': blocks = 5; expected one of 4, 6, 8, 10, 12"),
        ("scene-cnn?blocks=true", "model 'scene-cnn': blocks = True; expected one of 4, 6, 8, 10, 12"),
        ("vgg16-bn-cifar", "unknown model 'vgg16-bn-cifar'; did you mean 'vgg19-bn-cifar'?"),
        ("torchvision:resnet19", "torchvision has no classifier 'resnet19'; did you mean 'resnet18'?"),
        ("torchvision:x", "torchvision has no classifier 'x'; `edgestill list models` shows all"),
        (
            "torchvision:resnet18?weights=DEFAULT",
            "model 'torchvision:resnet18': 'weights' is not an option: give a file in the recipe's weights",
        ),
        ("a b:c", "model 'a b:c' is neither 'torchvision:NAME' nor of the form 'my_pkg.my_module:build'"),
        (
            "no_such_pkg.nets:build",
            "model 'no_such_pkg.nets:build': no module 'no_such_pkg.nets'; install it or put its folder on PYTHONPATH",
        ),
    ],
)
def test_check_name_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_name(text, where="teacher.model")
    assert str(caught.value) == f"teacher.model: {message}"
    with pytest.raises(RecipeError) as caught:
        build(text, num_classes=10)
    assert str(caught.value) == message


def test_options_are_the_signatures() -> None:
    assert list(MODELS) == list(OPTIONS)
    for name, target in MODELS.items():
        parameters = inspect.signature(load(target)).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert options == OPTIONS[name], name
        assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == ["num_classes", "in_channels"], name


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("mlperf-resnet8", 78_186, 12_501_632),  # MLPerf Tiny's published count, less Keras's 480 moving statistics
        ("cifar-resnet20?shortcut=A", 269_722, 40_551_040),  # He et al., table 6: 0.27 M
        ("cifar-resnet32?shortcut=A", 464_154, None),  # 0.46 M
        ("cifar-resnet44?shortcut=A", 658_586, None),  # 0.66 M
        ("cifar-resnet56?shortcut=A", 853_018, 125_485_696),  # 0.85 M
        ("cifar-resnet18", 11_173_962, 555_422_720),  # kuangliu/pytorch-cifar
        ("cifar-resnet34", 21_282_122, None),
    ],
)
def test_published_sizes(name: str, params: int, macs: int | None) -> None:
    with torch.device("meta"):
        module = build(name, num_classes=10)
    assert sum(parameter.numel() for parameter in module.parameters()) == params
    if macs is not None:
        assert count_torch(module, (1, 3, 32, 32)).macs == macs


def test_padded_shortcut_is_a_slice_between_zeros() -> None:
    x = torch.randn(2, 4, 5, 5)
    y = PaddedShortcut(4, 8, 2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 6:].any()


@pytest.mark.parametrize("size", [8, 28, 33])
@pytest.mark.parametrize(
    "name",
    [
        *("mlperf-resnet8", "cifar-resnet20?width=0.25", "cifar-resnet20?shortcut=A", "cifar-resnet101?width=0.0625"),
        *("mobilenetv3-small-cifar", "mobilenetv2-cifar?width=0.25", "scene-cnn?blocks=4"),
    ],
)
def test_families_take_gray_and_odd_sizes(name: str, size: int) -> None:
    module = build(name, num_classes=7, in_channels=1, input_size=(1, size, size))
    assert module.training and next(module.parameters()).shape[1] == 1


@pytest.mark.parametrize(
    ("name", "sizes", "too_small"),
    [("vgg11-bn-cifar?width=0.125", (32, 33, 64), 31), ("densenet121-cifar?width=0.125", (29, 32, 64), 28)],
)
def test_families_whose_poolings_need_pixels(name: str, sizes: tuple[int, ...], too_small: int) -> None:
    for size in sizes:
        assert next(build(name, in_channels=1, input_size=(1, size, size)).parameters()).shape[1] == 1
    with pytest.raises(
        UserError, match=rf"^model '{re.escape(name)}' does not take images of 3x{too_small}x{too_small} "
    ):
        build(name, input_size=(3, too_small, too_small))


def test_a_width_that_leaves_nothing() -> None:
    with pytest.raises(UserError) as caught:
        build("densenet121-cifar?width=0.01")
    assert str(caught.value) == "model 'densenet121-cifar': width = 0.01 leaves no channel; give 0.03 or more"


def test_hidden_layers_of_the_scene_nets() -> None:
    """The teacher has two, of a half and a quarter of the pooled width; the students one."""
    widths = {}
    for blocks in (12, 10, 8, 6, 4):
        with torch.device("meta"):
            module = build(f"scene-cnn?blocks={blocks}")
        widths[blocks] = [part.in_features for part in module.modules() if isinstance(part, nn.Linear)]
        assert module(torch.zeros(2, 3, 150, 150, device="meta")).shape == (2, 6)
    assert widths == {12: [1024, 512, 256], 10: [512, 256], 8: [256, 128], 6: [128, 64], 4: [64, 32]}


@pytest.mark.parametrize(
    "name", ["vgg11-bn-cifar?width=0.125", "mobilenetv3-small-cifar", "scene-cnn?blocks=4", "cifar-resnet20"]
)
def test_no_layer_overwrites_what_a_hook_has_seen(name: str) -> None:
    """Features are taken by hooks, which an activation in place would change afterwards."""
    module = build(name).eval()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.Conv2d)):
            part.register_forward_hook(lambda _part, _inputs, output: seen.append((output, output.clone())))
    with torch.no_grad():
        module(torch.randn(1, 3, 32, 32))
    assert seen and all(torch.equal(*pair) for pair in seen)


def test_weights_are_drawn_from_the_global_generator() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build("mlperf-resnet8", num_classes=10, input_size=(3, 8, 8)).state_dict()["conv1.weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_only_gray_and_rgb() -> None:
    with pytest.raises(UserError, match=r"^model 'mlperf-resnet8': images have 4 channels; expected 1 .gray. or 3"):
        build("mlperf-resnet8", num_classes=10, in_channels=4)


def test_torchvision_names_are_read_without_importing_it() -> None:
    models = pytest.importorskip("torchvision").models
    assert torchvision_names() == tuple(sorted(models.list_models(module=models)))


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "densenet121", "efficientnet_b0"),
        *("shufflenet_v2_x0_5", "regnet_y_400mf", "mnasnet0_5", "googlenet", "convnext_tiny", "swin_t"),
    ],
)
def test_torchvision_head_and_stem_fit_the_data(name: str) -> None:
    module = build(f"torchvision:{name}", num_classes=7, in_channels=1, input_size=(1, 64, 64))
    assert module(torch.zeros(2, 1, 64, 64)).shape == (2, 7)  # in training mode too: one tensor, no auxiliary logits


def test_torchvision_arguments_and_their_errors() -> None:
    narrow = build("torchvision:mobilenet_v2?width_mult=0.25&dropout=0.5", num_classes=3, input_size=(3, 64, 64))
    assert narrow.features[0][0].out_channels == 8 and narrow.classifier[0].p == 0.5
    with pytest.raises(RecipeError) as unknown:
        build("torchvision:resnet18?wdth=1", num_classes=3)
    assert str(unknown.value) == (
        "model 'torchvision:resnet18' has no option 'wdth'; known: groups, width_per_group, zero_init_residual"
    )
    with pytest.raises(UserError) as refused:
        build("torchvision:resnet18?groups=2", num_classes=3)
    assert str(refused.value) == (
        "model 'torchvision:resnet18' refuses {'groups': 2}: BasicBlock only supports groups=1 and base_width=64"
    )


def test_gray_stem_sums_the_colours() -> None:
    torch.manual_seed(0)
    colour = build("torchvision:resnet18", num_classes=3).eval()
    torch.manual_seed(0)
    gray = build("torchvision:resnet18", num_classes=3, in_channels=1).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(gray(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_num_classes_may_be_the_familys_own() -> None:
    with torch.device("meta"):
        assert build("torchvision:resnet18").fc.out_features == 1000
        assert build("cifar-resnet20").linear.out_features == 10


def test_too_small_images_are_refused_before_training() -> None:
    with pytest.raises(UserError) as caught:
        build("torchvision:alexnet", num_classes=3, input_size=(3, 8, 8))
    text = str(caught.value)
    assert text.startswith("model 'torchvision:alexnet' does not take images of 3x8x8 (") and "\n" not in text
    assert text.endswith("); set data.image_size or take another model")


class Odd(nn.Module):
    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor) -> object:
        return self.result


def test_check_forward_refuses_other_outputs_and_restores_the_mode() -> None:
    module = Odd({"out": torch.zeros(2, 3)})
    with pytest.raises(UserError, match=r"^model 'm' returns a dict; expected one tensor of logits \(N, classes\)$"):
        check_forward(module, "m", input_size=(3, 8, 8), num_classes=3)
    with pytest.raises(UserError, match=r"^model 'm' returns shape \(2, 5\) for 2 images; expected \(2, 3\): logits$"):
        check_forward(Odd(torch.zeros(2, 5)), "m", input_size=(3, 8, 8), num_classes=3)
    assert module.training
