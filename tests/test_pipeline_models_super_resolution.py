"""Super-resolution networks: published sizes, what the student is made of, checkpoints that spandrel recognises."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import RecipeError, UserError
from pipeline.models import build, check_name, parse_name, source_stamp
from pipeline.models.rfdn import RFDN
from profiles.flops import count_torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("rfdn", 433_448),  # the checkpoint of NTIRE 2022's baseline, tensor by tensor
        ("swinir-classical", 11_900_199),  # official code, x4
        ("swinir-light", 929_628),
        ("attention-sr", 80_784),
        ("attention-sr?channels=16", 38_512),
    ],
)
def test_sizes(name: str, params: int) -> None:
    assert sum(parameter.numel() for parameter in build(name, num_classes=3).parameters()) == params


def test_the_student_counts_by_hand() -> None:
    """12 blocks of a 3x3 and a 1x1 convolution, head and tail: the MACs of one input pixel are its weights."""
    weights = 3 * 24 * 9 + 12 * (24 * 24 * 9 + 24 * 24) + 24 * 48 * 9
    module = build("attention-sr", num_classes=3)
    assert count_torch(module, (1, 3, 16, 20)).macs == weights * 16 * 20
    assert sum(p.numel() for p in module.parameters()) == weights + 24 + 12 * (24 + 24) + 48 <= 100_000


@pytest.mark.parametrize("name", ["attention-sr", "attention-sr?scale=2&channels=8&blocks=2", "rfdn?scale=3"])
def test_output_is_the_input_enlarged(name: str) -> None:
    scale = parse_name(name).args.get("scale", 4)
    module = build(name, num_classes=3).eval()
    with torch.no_grad():
        assert module(torch.rand(2, 3, 16, 20)).shape == (2, 3, 16 * scale, 20 * scale)
    gray = build(name, num_classes=1, in_channels=1).eval()
    with torch.no_grad():
        assert gray(torch.rand(1, 1, 16, 16)).shape == (1, 1, 16 * scale, 16 * scale)


def test_training_of_the_student_begins_near_the_enlarged_input() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 16)
    module = build("attention-sr", num_classes=3).eval()
    enlarged = nn.functional.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert (module(x) - enlarged).abs().mean() < 0.1


def test_the_student_sees_29_pixels_and_nothing_global() -> None:
    """So that a tile with 14 pixels of margin gives what the whole image gives."""
    torch.manual_seed(0)
    module = build("attention-sr", num_classes=3).eval()
    x = torch.rand(1, 3, 48, 48)
    y = x.clone()
    y[..., :9] = 0
    with torch.no_grad():
        difference = (module(x) - module(y)).abs().amax(dim=(0, 1, 2))
    assert difference[4 * 22] > 0 and not difference[4 * 24 :].any()


def test_the_student_adds_to_its_input() -> None:
    with pytest.raises(UserError) as caught:
        build("attention-sr", num_classes=1, in_channels=3)
    assert str(caught.value) == "model 'attention-sr' adds to its input: 3 channels cannot become 1"


def test_rfdn_takes_values_from_0_to_1_on_weights_made_for_255() -> None:
    torch.manual_seed(0)
    ours, raw = build("rfdn?channels=8", num_classes=3).eval(), build("rfdn?channels=8&levels=1", num_classes=3).eval()
    raw.load_state_dict(ours.state_dict())
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x) * 255, raw(x * 255), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("attention-sr?scale=5", "model 'attention-sr': scale = 5; expected one of 2, 3, 4, 8"),
        ("attention-sr?scale=true", "model 'attention-sr': scale = True; expected one of 2, 3, 4, 8"),
        ("attention-sr?blocks=0", "model 'attention-sr': blocks = 0; expected a whole number from 1 to 64"),
        ("attention-sr?channels=24.5", "model 'attention-sr': channels = 24.5; expected a whole number from 1 to 1024"),
        ("rfdn?levels=nan", "model 'rfdn': levels = nan; expected a positive number"),
        ("swinir?scale=4", "unknown model 'swinir'; did you mean 'swinir-light'?"),
        (
            "spandrel:net.onnx",
            "model 'spandrel:net.onnx': write a checkpoint after 'spandrel:', a .safetensors, .pt, .pth, .th file",
        ),
        ("spandrel:net.pth?scale=4", "model 'spandrel:net.pth' has no option 'scale'; its checkpoint says all"),
    ],
)
def test_names_that_cannot_be_built(name: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_name(name, where="student.model")
    assert str(caught.value) == f"student.model: {message}"


@pytest.fixture(scope="module")
def span_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of an architecture that is not written here."""
    span = pytest.importorskip("spandrel.architectures.SPAN")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("spandrel") / "span.pth"
    torch.save({"params": span.SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4).state_dict()}, path)
    return path


def test_a_checkpoint_that_spandrel_recognises(span_checkpoint: Path) -> None:
    name = f"spandrel:{span_checkpoint}"
    check_name(name, where="teacher.model")
    module = build(name, num_classes=3)
    assert module.training and all(parameter.requires_grad for parameter in module.parameters())
    held = torch.load(span_checkpoint, weights_only=True)["params"]
    assert torch.equal(module.state_dict()["conv_1.sk.weight"], held["conv_1.sk.weight"])
    with torch.no_grad():
        assert module.eval()(torch.rand(1, 3, 16, 16)).shape == (1, 3, 64, 64)
    assert source_stamp(name)["checkpoint"] == source_stamp(name, str(span_checkpoint))["weights"]
    with pytest.raises(UserError, match=r": takes 3 channels; images have 1$"):
        build(name, in_channels=1)


def test_checkpoints_that_spandrel_does_not_load(tmp_path: Path, span_checkpoint: Path) -> None:
    pytest.importorskip("spandrel")
    unknown = tmp_path / "unknown.pth"
    torch.save({"a.weight": torch.zeros(2, 2)}, unknown)
    with pytest.raises(UserError, match=rf"^model 'spandrel:{re.escape(str(unknown))}': spandrel \S+ knows no network"):
        build(f"spandrel:{unknown}")
    with pytest.raises(UserError, match=r"none.pth'; give a .safetensors, .pt, .pth or .th file$"):
        build(f"spandrel:{tmp_path / 'none.pth'}")
    held = torch.load(span_checkpoint, weights_only=True)["params"]
    torch.save({**held, "conv_1.sk.weight": torch.zeros(3, 3, 1, 1)}, unknown)
    with pytest.raises(UserError) as caught:
        build(f"spandrel:{unknown}")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_checkpoint_of_swinir_is_recognised_and_loads_strictly(tmp_path: Path) -> None:
    module = build("swinir-light", num_classes=3)
    torch.save(module.state_dict(), tmp_path / "swinir.pth")
    found = build(f"spandrel:{tmp_path / 'swinir.pth'}").eval()
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(found(x), module.eval()(x))


def test_rfdn_is_not_changed_by_a_hook_that_keeps_its_features() -> None:
    module = build("rfdn?channels=8", num_classes=3).eval()
    assert isinstance(module, RFDN)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _part, _inputs, output: seen.append((output, output.clone())))
    with torch.no_grad():
        module(torch.rand(1, 3, 16, 16))
    assert seen and all(torch.equal(*pair) for pair in seen)


@pytest.mark.real
def test_rfdn_loads_strictly_and_reaches_what_it_published_on_set5() -> None:
    """32.24 dB published (x4, Y, border of 4); 32.16 here: the checkpoint is the challenge's smaller network."""
    from pipeline.data.imagefolder import image_files
    from pipeline.data.super_resolution import Judged, pair, read
    from pipeline.models.weights import load_weights
    from pipeline.tasks.super_resolution import SuperResolution as Task

    real = Path(os.environ.get("EDGESTILL_REAL_DATA", ""))
    weights = real / "weights" / "super_resolution_x4" / "rfdn_baseline.pth"
    if not weights.is_file():
        pytest.skip("EDGESTILL_REAL_DATA names no folder with the real data sets")
    module = build("rfdn", num_classes=3).eval()
    assert load_weights(module, weights, where="teacher.weights") == ()
    found, enlarged = [], []
    for file in image_files(real / "super_resolution" / "Set5" / "HR"):
        image, target = Judged(pairs=[pair(read(file), 4, 0.0)], border=4)[0]
        with torch.inference_mode():
            output = module(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0).numpy()
        found.append(Task.outcomes([output], [target])["psnr_y"][0])
        enlarged.append(Task.scores([Task.baseline(image, output.shape)], [target])[0])
    assert sum(found) / 5 == pytest.approx(32.24, abs=0.3) and sum(found) / 5 == pytest.approx(32.159, abs=0.01)
    assert sum(enlarged) / 5 == pytest.approx(28.42, abs=0.02)  # bicubic, as every paper prints it
