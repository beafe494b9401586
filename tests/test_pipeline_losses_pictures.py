"""Losses of pictures: closed forms, what they refuse, and the perceptual one's file of weights."""

import math
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.losses import check_term, files
from pipeline.losses import functional as losses
from pipeline.losses.perceptual import features, vgg
from pipeline.recipe_file import load_recipe
from pipeline.recipe_training import LossTerm
from pipeline.stages.distill import stages


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", [losses.l1, losses.output_l1])
def test_mean_absolute_difference_in_closed_form(loss) -> None:
    zeros, other = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    other[0] = 0.25
    assert loss(zeros, other).item() == 0.125
    noise = normal(0, 4, 3, 100, 100)
    assert loss(torch.zeros_like(noise), noise).item() == pytest.approx(math.sqrt(2 / math.pi), rel=1e-2)


@pytest.mark.parametrize("loss", [losses.l1, losses.output_l1])
def test_its_gradient_is_the_sign_over_the_number_of_elements(loss) -> None:
    student, other = normal(1, 2, 3, 4, 4).requires_grad_(), normal(2, 2, 3, 4, 4)
    loss(student, other).backward()
    torch.testing.assert_close(student.grad, (student - other).sign().detach() / student.numel())


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        losses.l1(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
    assert str(caught.value) == (
        "l1: student output (2, 3, 4, 4), target (2, 3, 2, 2) of torch.float32; expected pictures of equal shape"
    )
    with pytest.raises(ValueError, match=r"^l1: .* of torch.int64; expected pictures of equal shape$"):
        losses.l1(torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^output_l1: student output \(2, 10\), teacher \(2, 9\)"):
        losses.output_l1(torch.zeros(2, 10), torch.zeros(2, 9))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """VGG-19's first two convolutions under torchvision's names, and a layer that is not read."""
    torch.manual_seed(0)
    state = {f"features.{name}": tensor for name, tensor in features(2).state_dict().items()}
    path = tmp_path / "vgg19.pth"
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


def test_vgg_has_torchvisions_layers() -> None:
    with torch.device("meta"):
        ours = features(35)
        theirs = pytest.importorskip("torchvision").models.vgg19().features[:36]
    assert [type(layer) for layer in ours] == [type(layer) for layer in theirs]
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert ours[34].out_channels == 512 and len(ours) == 36


def test_perceptual_compares_features_of_normalised_pictures(weights: Path) -> None:
    student, target = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8)
    value = losses.perceptual(student, target, weights=str(weights), layer=2)
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    network = vgg(str(weights), 2, "cpu")
    expected = (network((student - mean) / std) - network((target - mean) / std)).abs().mean()
    torch.testing.assert_close(value, expected)
    value.backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())
    same = losses.perceptual(target, target, weights=str(weights), layer=2)
    assert same.item() == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(losses.perceptual(student, target, weights=str(weights), layer=2), value)


def test_perceptual_without_its_file_is_refused_in_one_line(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(
        ValueError, match=r"weights is missing; write weights = 'FILE', a .safetensors, .pt or .pth file"
    ):
        LossTerm.model_validate({"loss": "perceptual", "weight": 0.1})
    with pytest.raises(ValueError, match=r"loss 'perceptual': weights = 3; expected the name of a file"):
        check_term("perceptual", {"weights": 3})
    with pytest.raises(ValueError, match=r"loss 'perceptual': layer = 40 must be from 0 to 35"):
        check_term("perceptual", {"weights": "vgg.pth", "layer": 40})
    pictures = torch.rand(1, 3, 8, 8)
    cases = {
        str(tmp_path / "none.pth"): r"^distill.losses: loss 'perceptual': weights: no file '.*none.pth'",
        str(weights): r"^distill.losses: loss 'perceptual': weights: .*weights do not fit.*missing features.5.weight",
    }
    for file, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            losses.perceptual(pictures, pictures, weights=file, layer=5)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^perceptual: pictures have 1 channels; VGG takes 3 \(RGB\)$"):
        losses.perceptual(pictures[:, :1], pictures[:, :1], weights=str(weights), layer=2)


def test_the_files_that_a_term_reads() -> None:
    assert files("perceptual", {"weights": "vgg.pth", "layer": 2}) == ("vgg.pth",)
    assert files("kd", {"temperature": 2.0}) == ()


def test_students_and_controls_are_stale_when_the_file_of_a_loss_changes(weights: Path) -> None:
    terms = f'distill.losses=[{{loss="perceptual",weight=0.1,weights="{weights}"}},{{loss="output_l1",weight=1.0}}]'
    recipe = load_recipe("paper003-super-resolution", [terms], smoke=True)
    found = {stage.name: stage for stage in stages(recipe)}
    before = {name: found[name].stamp() for name in ("distill", "control")}
    weights.write_bytes(b"other")
    assert all(found[name].stamp() != before[name] for name in before)
    plain = load_recipe("paper003-super-resolution", smoke=True)
    assert all("losses" not in stage.stamp() for stage in stages(plain) if stage.name in before)
