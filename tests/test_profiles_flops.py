"""Operation counts: closed forms, torchvision's published figures, and torch against its own ONNX export."""

import pytest
import torch
from torch import nn

from profiles.errors import ProfileError
from profiles.flops import count_torch

torch.set_num_threads(1)


def test_convolution_and_linear_closed_forms():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, groups=4, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    counts = count_torch(net, (2, 3, 16, 16))
    assert counts.macs == 2 * (8 * 8 * 8 * 27 + 16 * 6 * 6 * 18 + 160)
    assert counts.flops == 2 * counts.macs
    assert counts.conv_linear_weights == 8 * 27 + 16 * 18 + 160
    assert counts.params == counts.conv_linear_weights + 8 + 16 + 10
    assert counts.uncounted == {"_native_batch_norm_legit_no_training": 1, "mean": 1, "relu": 1}


def test_transposed_convolution_counts_its_inputs():
    counts = count_torch(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 5))
    assert counts.macs == 5 * 5 * 4 * 3 * 9
    assert counts.conv_linear_weights == 4 * 3 * 9


def attention_macs(batch, length, width):
    return batch * (4 * length * width * width + 2 * length * length * width)


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_is_counted_whatever_its_path(need_weights):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=need_weights)[0]

    before = torch.backends.mha.get_fastpath_enabled()
    counts = count_torch(Block().eval(), (2, 7, 16))
    assert counts.macs == attention_macs(2, 7, 16)
    assert counts.conv_linear_weights == 4 * 16 * 16
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_a_module_that_meta_tensors_cannot_run_is_run_for_real():
    class Peeking(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5)
            self.dropout = nn.Dropout()

        def forward(self, x):
            return self.dropout(self.linear(x)) if x.sum().item() == 0 else x

    module = Peeking()
    module.dropout.eval()
    counts = count_torch(module, (3, 4))
    assert counts.macs == 60
    assert counts.uncounted == {"sum": 1}
    assert module.training
    assert module.linear.training
    assert not module.dropout.training


def test_module_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    count_torch(net, (1, 1, 2, 2))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(value.device.type == "cpu" for value in net.state_dict().values())


def test_shared_weights_are_counted_once():
    linear = nn.Linear(4, 4, bias=False)
    counts = count_torch(nn.Sequential(linear, linear), (1, 4))
    assert (counts.params, counts.conv_linear_weights, counts.macs) == (16, 16, 32)


def test_half_precision_modules_are_fed_their_type():
    assert count_torch(nn.Linear(4, 4).half(), (1, 4)).macs == 16


def test_products_without_formula_are_named():
    class Dot(nn.Module):
        def forward(self, x):
            return torch.dot(x, x)

    assert count_torch(Dot(), (9,)).uncounted == {"dot": 1}


def test_wrong_input_says_what_to_give():
    with pytest.raises(ProfileError) as caught:
        count_torch(nn.Conv2d(3, 4, 3), (1, 1, 8, 8))
    text = str(caught.value)
    assert text.startswith("Conv2d: forward pass on input 1,1,8,8 failed (")
    assert text.endswith("); give the input size that the model takes")
    assert "\n" not in text


NAMES = [
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "squeezenet1_0",
    "densenet121",
    "convnext_tiny",
    "swin_t",
    "swin_v2_t",
    "vit_b_16",
    "maxvit_t",
    "inception_v3",
]


def build(models, name, side):
    """Without bytes where the builder allows it; some read a computed number while they are built."""
    options = {"image_size": side} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}
    try:
        with torch.device("meta"):
            return models.get_model(name, **options)
    except NotImplementedError:
        return models.get_model(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_what_torchvision_publishes(name):
    models = pytest.importorskip("torchvision").models
    weights = models.get_model_weights(name).DEFAULT
    (side,) = weights.transforms().crop_size
    counts = count_torch(build(models, name, side), (1, 3, side, side))
    assert counts.macs / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.00051)
    assert counts.params == weights.meta["num_params"]


@pytest.mark.slow
def test_agrees_with_all_that_torchvision_publishes():
    models = pytest.importorskip("torchvision").models
    differ = {}
    for name in models.list_models(module=models):
        if name.startswith("regnet") and name.endswith(("16gf", "32gf", "128gf")):
            continue  # gigabytes of weights that their builder cannot leave out
        for weights in models.get_model_weights(name):
            (side,) = weights.transforms().crop_size
            macs = count_torch(build(models, name, side), (1, 3, side, side)).macs / 1e9
            if abs(macs - weights.meta["_ops"]) > 0.00051:
                differ[str(weights)] = (macs, weights.meta["_ops"])
    assert differ == {}
