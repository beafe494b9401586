"""U-Nets of segmentation-models-pytorch by name: counts of parameters, encoders' weights, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from cli_runner import cli

from pipeline.errors import RecipeError, UserError
from pipeline.models import build, check_name, segmentation_networks, source_stamp
from pipeline.models.options import SMP

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("segmentation_models_pytorch") is None, reason="pip install 'edgestill[test]'"
)

# Paper 003's networks, counted against the package (0.6.0): encoder + decoder + head.
PARAMETERS = {"resnet34": 21_284_672 + 3_151_552 + 145, "mobilenet_v2": 2_223_872 + 4_404_928 + 145}
MACS = {"resnet34": 1_953_497_088, "mobilenet_v2": 836_253_696}  # at 128x128


@pytest.mark.parametrize("encoder", PARAMETERS)
def test_parameters_of_the_papers_networks(encoder: str):
    found = cli("inspect", f"smp:Unet?encoder={encoder}", "--input", "1,3,128,128", "--json").json
    assert found["params"] == PARAMETERS[encoder] and found["macs"] == MACS[encoder]
    assert PARAMETERS == {"resnet34": 24_436_369, "mobilenet_v2": 6_628_945}


def test_the_answer_has_the_size_of_the_image_and_the_channels_asked_for():
    network = build(
        "smp:Unet?encoder=mobilenet_v2", num_classes=1, in_channels=3, input_size=(3, 64, 64), answer_shape=(1, 64, 64)
    )
    assert network.training
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 1, 64, 96)
    gray = build("smp:Unet?encoder=mobilenet_v2", num_classes=2, in_channels=1)
    with torch.no_grad():
        assert gray.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_a_shallow_network_leaves_the_coarsest_stages_out():
    deep, shallow = (build(f"smp:Unet?encoder=resnet18&depth={depth}", num_classes=1) for depth in (5, 3))
    coarse = ("encoder.layer3.", "encoder.layer4.", "decoder.blocks.3.", "decoder.blocks.4.")
    kept, all_of_it = shallow.state_dict(), deep.state_dict()
    assert {key for key in kept if key.startswith("encoder")} < {key for key in all_of_it if not key.startswith(coarse)}
    assert sum(part.numel() for part in kept.values()) * 10 < sum(part.numel() for part in all_of_it.values())
    with torch.no_grad():
        assert shallow.eval()(torch.zeros(1, 3, 24, 40)).shape == (1, 1, 24, 40)


def test_a_side_that_cannot_be_halved_five_times_is_answered_in_its_own_size():
    network = build("smp:Unet?encoder=mobilenet_v2", num_classes=1, input_size=(3, 50, 50), answer_shape=(1, 50, 50))
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 50, 70)).shape == (1, 1, 50, 70)


def test_a_network_that_answers_in_another_size_is_refused():
    with pytest.raises(UserError, match=r"expected a picture \(1, 128, 128\)"):
        build("smp:Unet?encoder=mobilenet_v2", num_classes=1, input_size=(3, 64, 64), answer_shape=(1, 128, 128))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smp:Unit?encoder=resnet34", "no network 'Unit'; did you mean 'Unet'?"),
        ("smp:Unet", "encoder is missing; write one such as smp:Unet?encoder=resnet34"),
        ("smp:Unet?encoder=34", "encoder is missing"),
        ("smp:Unet?encoder=resnet34&dept=4", "has no option 'dept'; did you mean 'depth'?"),
        ("smp:Unet?encoder=resnet34&depth=2", "depth, how often the encoder halves its input, must be 3, 4 or 5"),
    ],
)
def test_wrong_names_are_refused_without_importing_anything(name: str, message: str):
    with pytest.raises(RecipeError) as caught:
        check_name(name, where="teacher.model")
    assert str(caught.value).startswith("teacher.model: ") and message in str(caught.value)


def test_an_unknown_encoder_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"no encoder 'resnet43'; did you mean 'resnet34'"):
        build("smp:Unet?encoder=resnet43")


def test_every_network_of_the_table_is_the_packages():
    import segmentation_models_pytorch

    assert all(hasattr(segmentation_models_pytorch, network) for network in SMP)


@pytest.mark.parametrize(("encoder", "classifier"), [("resnet34", "resnet34"), ("mobilenet_v2", "mobilenet_v2")])
def test_a_classifiers_weights_make_the_encoder(tmp_path: Path, encoder: str, classifier: str):
    whole = build(f"torchvision:{classifier}")
    path = tmp_path / "classifier.pth"
    torch.save(whole.state_dict(), path)
    name = f"smp:Unet?encoder={encoder}&encoder_weights={path}"
    own = build(name).encoder.state_dict()
    taken = [key for key in whole.state_dict() if key in own]
    assert len(taken) == len(own)
    assert all(torch.equal(own[key], whole.state_dict()[key]) for key in taken)
    before = source_stamp(name)
    torch.save({key: tensor + 1 for key, tensor in whole.state_dict().items()}, path)
    assert source_stamp(name) != before and set(before) == {"encoder_weights"}


def test_weights_of_another_encoder_are_refused(tmp_path: Path):
    torch.save(build("torchvision:resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match=r"encoder_weights: .*resnet18\.pth: .*do not fit|another architecture"):
        build(f"smp:Unet?encoder=resnet34&encoder_weights={tmp_path / 'resnet18.pth'}")
    with pytest.raises(UserError, match=r"encoder_weights: no file '.*none\.pth'"):
        build(f"smp:Unet?encoder=resnet34&encoder_weights={tmp_path / 'none.pth'}")


def test_a_missing_package_is_a_line_with_the_cure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segmentation_networks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError) as caught:
        build("smp:Unet?encoder=resnet34")
    assert str(caught.value) == (
        "smp:Unet: segmentation-models-pytorch is not installed; pip install 'edgestill[dense]'"
    )


def test_the_list_has_it():
    rows = cli("list", "models", "--json").json["models"]
    assert any(row["name"].startswith("smp:") and row["unavailable"] is None for row in rows)
