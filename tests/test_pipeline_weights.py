"""Weights files: every wrapping that is taken off, every refusal with its line."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.weights import load_weights

MODEL = "cifar-resnet20?width=0.25"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(1)
    return build(MODEL, num_classes=10)


def fresh(seed: int = 2, name: str = MODEL, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build(name, **{"num_classes": 10} | arguments)


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def refusal(module: nn.Module, path: Path) -> str:
    """The one line with which `path` is refused; `module` must be left as it was."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(module, path, where="teacher.weights")
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    text = str(caught.value)
    assert "\n" not in text
    return text


def prefixed(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


WRAPPINGS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda module: module.state_dict(),
    "state_dict": lambda module: {"state_dict": module.state_dict(), "best_prec1": 93.1, "epoch": 3},
    "model": lambda module: {"model": module.state_dict(), "optimizer": {"lr": 0.1}},
    "twice": lambda module: {"state_dict": {"model": module.state_dict()}},
    "only an average": lambda module: {"ema": module.state_dict(), "step": torch.tensor(3)},
    "parallel": lambda module: {"state_dict": prefixed("module.", module)},
    "compiled": lambda module: prefixed("_orig_mod.", module),
    "lightning, parallel and compiled": lambda module: prefixed("model.module._orig_mod.", module),
    "averaged": lambda module: torch.optim.swa_utils.AveragedModel(module).state_dict(),
    "without counters": lambda module: {k: v for k, v in module.state_dict().items() if "num_batches" not in k},
    "half precision": lambda module: {
        k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_usual_wrappings_are_taken_off(module: nn.Module, tmp_path: Path, wrapping: str) -> None:
    if wrapping == "half precision":
        module.half().float()
    torch.save(WRAPPINGS[wrapping](module), tmp_path / "w.pth")
    other = fresh()
    load_weights(other, tmp_path / "w.pth", where="teacher.weights")
    assert same(other, module)
    assert next(other.parameters()).dtype == torch.float32


def test_legacy_and_safetensors_files(module: nn.Module, tmp_path: Path) -> None:
    torch.save(module.state_dict(), tmp_path / "w.th", _use_new_zipfile_serialization=False)
    save_file(prefixed("module.", module), tmp_path / "w.safetensors")
    for name in ("w.th", "w.safetensors"):
        other = fresh()
        load_weights(other, tmp_path / name, where="teacher.weights")
        assert same(other, module)


def test_prefix_that_belongs_to_the_module_stays(tmp_path: Path) -> None:
    inside = nn.ModuleDict({"model": nn.Linear(2, 2)})
    torch.save(inside.state_dict(), tmp_path / "w.pt")
    load_weights(inside, tmp_path / "w.pt", where="teacher.weights")


def test_auxiliary_heads_of_published_weights_are_left_out(tmp_path: Path) -> None:
    module = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    torch.save(module.state_dict() | {"aux1.fc1.weight": torch.zeros(3)}, tmp_path / "w.pt")
    load_weights(module, tmp_path / "w.pt", where="teacher.weights")


def test_missing_folder_unknown_and_empty_files(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "none.pt"
    assert refusal(module, path) == (
        f"teacher.weights: no file {str(path)!r}; give a .safetensors, .pt, .pth or .th file"
    )
    assert refusal(module, tmp_path) == (
        f"teacher.weights: {tmp_path}: not a file; give a .safetensors, .pt, .pth or .th file"
    )
    path = tmp_path / "w.h5"
    path.touch()
    assert refusal(module, path) == (
        f"teacher.weights: {path}: '.h5' is unknown; expected .safetensors, .pt, .pth or .th"
    )
    path = tmp_path / "w.pt"
    path.touch()
    assert refusal(module, path) == f"teacher.weights: {path}: the file is empty; copy or download it again"


def test_another_architecture(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(fresh(name="mlperf-resnet8").state_dict(), path)
    assert refusal(module, path).startswith(
        f"teacher.weights: {path}: weights of another architecture: 2 of 108 tensors fit; missing layer1.0.conv1.weight"
    )
    small = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))
    torch.save({"0.weight": torch.ones(5, 3), "0.bias": torch.ones(2), "2.bias": torch.ones(4)}, path)
    assert refusal(small, path) == (
        f"teacher.weights: {path}: weights of another architecture: 1 of 4 tensors fit; missing 1.weight, 1.bias; "
        "unexpected 2.bias; of another shape 0.weight (got [5, 3], expected [2, 3]); "
        "check the model's name and its ?options"
    )


def test_another_shortcut_lists_what_is_missing(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = fresh(name="cifar-resnet20?width=0.25&shortcut=A").state_dict()
    torch.save({name: tensor for name, tensor in state.items() if "num_batches" not in name}, path)
    assert refusal(module, path) == (
        f"teacher.weights: {path}: weights do not fit: 97 of 107 tensors fit; missing layer2.0.shortcut.0.weight, "
        "layer2.0.shortcut.1.weight, layer2.0.shortcut.1.bias, layer2.0.shortcut.1.running_mean, "
        "layer2.0.shortcut.1.running_var and 5 more; check the model's name and its ?options"
    )


def test_other_classes_and_channels_are_called_so(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(fresh(num_classes=100).state_dict(), path)
    assert refusal(module, path) == (
        f"teacher.weights: {path}: head 'linear' has 100 classes, data has 10; give weights trained on these 10 classes"
    )
    torch.save(fresh(in_channels=1).state_dict(), path)
    assert refusal(module, path) == (
        f"teacher.weights: {path}: first layer 'conv1' takes 1 channels, data has 3; "
        "give weights trained on such images"
    )


def test_not_finite_weights(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = module.state_dict() | {"linear.bias": torch.full((10,), float("nan"))}
    torch.save(state, path)
    assert refusal(module, path) == (
        f"teacher.weights: {path}: NaN or infinite values in linear.bias; save the weights again from a sound run"
    )


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(module: nn.Module, tmp_path: Path, legacy: bool) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "ran"
    if legacy:
        path.write_bytes(pickle.dumps(Malicious(mark), protocol=2))
    else:
        torch.save({"state_dict": module.state_dict(), "more": Malicious(mark)}, path)
    text = refusal(module, path)
    assert text == (
        f"teacher.weights: {path}: holds code or objects (posix.mkdir), which could run anything; refused; "
        "re-save its state_dict with safetensors"
    )
    assert not mark.exists()


def test_a_whole_module_or_program_is_refused(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(module, path)
    assert "holds code or objects (pipeline.models.cifar_resnet.CifarResNet)" in refusal(module, path)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([1, 2], "holds a list; expected a state_dict (names to tensors)"),
        ({}, "no weights found; it holds nothing"),
        ({"a": 1, "b": "x"}, "no weights found; it holds a, b"),
        ({"w": torch.ones(2), "epoch": 3}, "epoch is no tensor; save the state_dict alone"),
    ],
)
def test_no_weights_inside(module: nn.Module, tmp_path: Path, held: Any, message: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(held, path)
    assert refusal(module, path) == f"teacher.weights: {path}: {message}"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    small = nn.Linear(3, 2)
    suffix = data.draw(st.sampled_from([".pt", ".th", ".safetensors"]))
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(small.state_dict(), path)
    else:
        torch.save(small.state_dict(), path, _use_new_zipfile_serialization=suffix == ".pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])
    text = refusal(small, path)
    # A pickle cut inside a name reads as an unknown one.
    assert text.startswith(f"teacher.weights: {path}: ")
    assert "copy or download it again" in text or (suffix == ".th" and "holds code or objects" in text)
    path.write_bytes(data.draw(st.binary(min_size=1, max_size=60)))
    refusal(small, path)
