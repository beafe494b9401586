"""Where a network starts: other numbers of classes, published weights by name, other people's names, pruned nets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import RecipeError, UserError
from pipeline.models import build, parse_name, source_stamp
from pipeline.models.named_weights import load_named_weights
from pipeline.models.torchvision_names import cached_weights, check_weights, published_weights, weights_url
from pipeline.models.weights import load_state, load_weights
from pipeline.recipe import Student
from pipeline.recipe_file import check_files, load_recipe
from pipeline.stages.network import network

SMALL = "torchvision:shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def fresh(name: str, seed: int = 2, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build(name, **{"num_classes": 10} | arguments)


def differing(module: nn.Module, state: Mapping[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, state[name].to(tensor))}


def test_head_skip_takes_all_but_the_classifier(tmp_path: Path) -> None:
    state = fresh("cifar-resnet20?width=0.25", num_classes=100).state_dict()
    torch.save(state, tmp_path / "w.pt")
    module = fresh("cifar-resnet20?width=0.25", seed=3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    skipped = load_weights(module, tmp_path / "w.pt", where="student.weights", head="skip")
    assert skipped == ("linear.weight", "linear.bias")
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in skipped)
    assert differing(module, {**state, **{name: before[name] for name in skipped}}) == set()
    same = fresh("cifar-resnet20?width=0.25", seed=4, num_classes=100)
    assert load_weights(same, tmp_path / "w.pt", where="student.weights", head="skip") == ()
    assert differing(same, state) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {"conv1.weight": torch.zeros(4, 3, 5, 5)},
            "of another shape conv1.weight (got [4, 3, 5, 5]",
        ),
        (lambda state: state | {"linear.weight": torch.zeros(100, 8)}, "of another shape linear.weight (got [100, 8]"),
        (
            lambda state: {name: tensor for name, tensor in state.items() if name != "linear.bias"},
            "missing linear.bias",
        ),
    ],
)
def test_head_skip_is_strict_otherwise(change: Any, message: str) -> None:
    module = fresh("cifar-resnet20?width=0.25")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = change(fresh("cifar-resnet20?width=0.25", num_classes=100).state_dict())
    with pytest.raises(UserError) as caught:
        load_state(module, state, place="student.weights: w.pt", head="skip")
    assert str(caught.value).startswith("student.weights: w.pt: weights do not fit: ") and message in str(caught.value)
    assert differing(module, before) == set()


def test_names_of_the_other_public_cifar_resnets(tmp_path: Path) -> None:
    """chenyaofo/pytorch-cifar-models says downsample and fc where kuangliu/pytorch-cifar says shortcut and linear."""
    state = fresh("cifar-resnet20").state_dict()
    theirs = {name.replace("shortcut", "downsample").replace("linear", "fc"): value for name, value in state.items()}
    assert {"layer2.0.downsample.0.weight", "fc.bias"} < theirs.keys()
    torch.save(theirs, tmp_path / "w.pt")
    module = fresh("cifar-resnet20", seed=3)
    load_weights(module, tmp_path / "w.pt", where="teacher.weights")
    assert differing(module, state) == set()


def test_published_weights_are_read_without_importing_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    for name in ("resnet34", "densenet121", "shufflenet_v2_x1_5", "vit_b_16", "mobilenet_v3_small", "swin_v2_t"):
        enum = models.get_model_weights(name)
        assert published_weights(name) == {key: enum[key].url for key in (*enum.__members__,)}


def test_every_classifier_has_default_weights() -> None:
    models = pytest.importorskip("torchvision").models
    for name in models.list_models(module=models):
        found = published_weights(name)
        assert found and all(url.endswith(".pth") for url in found.values()), name


def test_cached_weights_are_where_torch_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = weights_url(parse_name(SMALL), "torchvision:DEFAULT")
    for variables in ({"TORCH_HOME": str(tmp_path / "a")}, {"XDG_CACHE_HOME": str(tmp_path / "b")}, {}):
        monkeypatch.delenv("TORCH_HOME", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
        assert cached_weights(url).parent == Path(torch.hub.get_dir()) / "checkpoints"


def published(cache: Path, model: str, **arguments: Any) -> dict[str, torch.Tensor]:
    """Weights of 1000 classes put where torchvision's published ones would lie."""
    state = fresh(model, seed=7, num_classes=1000, **arguments).state_dict()
    torch.save(state, cache / cached_weights(weights_url(parse_name(model), "torchvision:DEFAULT")).name)
    return state


def test_named_weights_come_from_the_cache(cache: Path) -> None:
    state = published(cache, SMALL)
    module = fresh(SMALL)
    assert load_named_weights(module, SMALL, where="student.weights") == ("fc.weight", "fc.bias")
    assert differing(module, state | {name: module.state_dict()[name] for name in ("fc.weight", "fc.bias")}) == set()
    whole = fresh(SMALL, num_classes=1000)
    assert load_named_weights(whole, SMALL) == () and differing(whole, state) == set()


def test_named_weights_for_gray_images(cache: Path) -> None:
    state = published(cache, SMALL)
    module = fresh(SMALL, in_channels=1)
    load_named_weights(module, SMALL)
    assert torch.equal(module.state_dict()["conv1.0.weight"], state["conv1.0.weight"].sum(1, keepdim=True))


def test_old_names_of_densenet(cache: Path) -> None:
    url = cached_weights(weights_url(parse_name("torchvision:densenet121"), "torchvision:DEFAULT"))
    state = fresh("torchvision:densenet121", num_classes=10).state_dict()
    old = {name.replace("norm1", "norm.1").replace("conv2", "conv.2"): value for name, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, cache / url.name)
    module = fresh("torchvision:densenet121", seed=3)
    load_named_weights(module, "torchvision:densenet121")
    assert differing(module, state) == set()


def test_missing_weights_are_one_line(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_named_weights(fresh(SMALL), SMALL, where="teacher.weights")
    line = (
        f"no file shufflenetv2_x0.5-f707e7126e.pth in {cache}; put it there, or fetch it with python -c "
        "\"import torchvision; torchvision.models.get_model('shufflenet_v2_x0_5', weights='DEFAULT')\""
    )
    assert str(caught.value) == f"teacher.weights: {line}"
    changes = [f"student.model={SMALL}", "student.weights=torchvision:DEFAULT"]
    with pytest.raises(RecipeError) as refused:
        check_files(load_recipe("digits", changes))
    assert str(refused.value) == f"student.weights: {line}"
    check_files(load_recipe("digits", [*changes, "data.name=cifar10", "data.root=cifar10", "data.download=true"]))


def test_weights_are_fetched_when_that_is_allowed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = fresh(SMALL, seed=7, num_classes=1000).state_dict()
    asked: list[Any] = []

    def fetch(url: str, dst: str, hash_prefix: str | None, progress: bool) -> None:
        asked.append((url.rpartition("/")[2], hash_prefix, progress))
        torch.save(state, dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    cache.rmdir()
    for _ in range(2):
        module = fresh(SMALL, num_classes=1000)
        load_named_weights(module, SMALL, download=True)
        assert differing(module, state) == set()
    assert asked == [("shufflenetv2_x0.5-f707e7126e.pth", "f707e7126e", False)]


def test_a_failed_fetch_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError('invalid hash value (expected "f7", got "00")\nmore')

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError) as caught:
        load_named_weights(fresh(SMALL), SMALL, download=True, where="teacher.weights")
    assert str(caught.value) == (
        "teacher.weights: cannot fetch shufflenetv2_x0.5-f707e7126e.pth "
        f'(invalid hash value (expected "f7", got "00")); put it into {cache}'
    )


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        (
            "cifar-resnet20",
            "torchvision:DEFAULT",
            "weights 'torchvision:DEFAULT' belong to a torchvision:NAME; model 'cifar-resnet20' needs a file",
        ),
        (
            "torchvision:resnet18",
            "torchvision:IMAGENET1K_V2",
            "torchvision has no weights 'IMAGENET1K_V2' for 'torchvision:resnet18'; did you mean 'IMAGENET1K_V1'?",
        ),
    ],
)
def test_weights_that_are_not_published(model: str, weights: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_weights(parse_name(model), weights, where="student.weights", download=True)
    assert str(caught.value) == f"student.weights: {message}"
    recipe = load_recipe("digits", [f"student.model={model}", f"student.weights={weights}"])
    with pytest.raises(RecipeError, match=re.escape(message)):
        check_files(recipe)


def test_weights_that_rescale_their_input(cache: Path) -> None:
    with torch.device("meta"):
        module = build("torchvision:googlenet", num_classes=10)
    with pytest.raises(UserError) as caught:
        load_named_weights(module, "torchvision:googlenet", download=True, where="student.weights")
    assert str(caught.value) == (
        "student.weights: these weights expect inputs that the network rescales; write model "
        "'torchvision:googlenet?transform_input=true'"
    )


def test_named_weights_are_stamped_by_their_file() -> None:
    stamp = {"weights": "shufflenetv2_x0.5-f707e7126e.pth"}
    assert source_stamp(SMALL, "torchvision:DEFAULT") == stamp
    assert source_stamp("pruned:torchvision:shufflenet_v2_x0_5?macs=0.5", "torchvision:DEFAULT") == stamp


DATA: Any = SimpleNamespace(class_names=("a", "b", "c"), outputs=3, input_size=(3, 32, 32), answer_shape=(3,))


def test_a_network_starts_from_named_weights(cache: Path) -> None:
    state = published(cache, SMALL)
    module = network(Student(model=SMALL, weights="torchvision:DEFAULT"), DATA, seed=0)
    assert torch.equal(module.state_dict()["conv5.0.weight"], state["conv5.0.weight"])
    assert module.state_dict()["fc.weight"].shape[0] == 3 and module.training


def test_a_pruned_network_starts_from_the_whole_or_from_what_is_left(tmp_path: Path) -> None:
    model = "pruned:cifar-resnet20?macs=0.5"
    whole = fresh("cifar-resnet20", num_classes=3)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    first = network(Student(model=model, weights=str(tmp_path / "whole.safetensors")), DATA, seed=0)
    conv, less = whole.state_dict()["conv1.weight"], first.state_dict()["conv1.weight"]
    kept = [i for i in range(16) if any(torch.equal(conv[i], row) for row in less)]
    assert len(kept) == len(less) < 16 and torch.equal(conv[kept], less)
    assert torch.equal(first.state_dict()["linear.bias"], whole.state_dict()["linear.bias"])
    save_file(first.state_dict(), tmp_path / "left.safetensors")
    again = network(Student(model=model, weights=str(tmp_path / "left.safetensors")), DATA, seed=1)
    assert differing(again, first.state_dict()) == set()
    random = network(Student(model=model), DATA, seed=1)
    assert {name: t.shape for name, t in random.state_dict().items()} == {
        name: t.shape for name, t in again.state_dict().items()
    }


def test_a_pruned_network_refuses_weights_of_another(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(fresh("cifar-resnet32", num_classes=3).state_dict(), path)
    with pytest.raises(UserError) as caught:
        network(Student(model="pruned:cifar-resnet20?macs=0.5", weights=str(path)), DATA, seed=0)
    assert str(caught.value).startswith(f"student.weights: {path}: weights do not fit: ")
    save_file(fresh("cifar-resnet20", num_classes=5).state_dict(), path)
    part = Student(model="pruned:cifar-resnet20?macs=0.5", weights=str(path))
    with pytest.raises(UserError) as caught:
        network(part, DATA, seed=0)
    assert str(caught.value) == (
        f"student.weights: {path}: head 'linear' has 5 classes, data has 3; give weights trained on these 3 classes"
    )
    assert network(part, DATA, seed=0, head="skip").get_parameter("linear.bias").shape == (3,)
